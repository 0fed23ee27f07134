# SPDX-License-Identifier: MIT
"""The interface of NATTEN 0.15. Its functions and submodules are rows of ``_table``."""

from vecina.compat import _build

_build.fill(__name__, "v015")
