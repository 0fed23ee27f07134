# SPDX-License-Identifier: MIT
"""The interface of natten-mlx 0.3, its functions on arrays of MLX, or of NumPy.

Its functions, modules and submodules are rows of ``_table``.
"""

from vecina.compat import _build

_build.fill(__name__, "natten_mlx")
_build.fill_port_compat(
    __name__,
    "mlx",
    versions={"v014": "v014", "v015": "v017", "v017": "v017", "v020": "v020"},
    first={(0, 0): "v014", (0, 15): "v015", (0, 16): "v017", (0, 18): "v020"},
)
