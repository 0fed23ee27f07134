# SPDX-License-Identifier: MIT
"""The functions of natten-mlx 0.3 on arrays of MLX, or of NumPy. They are rows of ``_table``.

Its nn modules and its own compat: not yet.
"""

from vecina.compat import _build

_build.fill(__name__, "natten_mlx")
