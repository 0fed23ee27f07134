# SPDX-License-Identifier: MIT
"""The functions of natten-mlx 0.3 on NumPy arrays. Its functions are rows of ``_table``.

Arrays of MLX (and so its gradients, its nn modules and its own compat): not yet.
"""

from vecina.compat import _build

_build.fill(__name__, "natten_mlx")
