# SPDX-License-Identifier: MIT
"""The interface of natten-mps 0.3. Its functions and submodules are rows of ``_table``."""

from vecina.compat import _build

_build.fill(__name__, "natten_mps")
_build.fill_port_compat(
    __name__,
    "mps",
    versions={"v014": "v014", "v015": "v017", "v017": "v017", "v020": "v020"},
    first={(0, 0): "v014", (0, 15): "v017", (0, 20): "v020"},
)
