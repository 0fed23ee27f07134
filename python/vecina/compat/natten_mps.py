# SPDX-License-Identifier: MIT
"""The interface of natten-mps 0.3. Its functions and submodules are rows of ``_table``."""

from vecina.compat import _build

_build.fill(__name__, "natten_mps")
_build.fill_port_compat(__name__)
