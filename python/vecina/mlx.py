# SPDX-License-Identifier: MIT
"""Neighborhood attention on MLX arrays, differentiable by ``mx.grad`` and ``mx.value_and_grad``.

{layout}

The arguments are those of vecina.numpy. vecina's CPU backend computes on the arrays' own memory,
at once: what a call needs is evaluated by it, and it cannot stand inside ``mx.compile`` or
``mx.vmap``, which say so. Gradients do not have gradients.

dtypes: float16, bfloat16, float32, float64. lse and bias are float32 (float64 for float64).

{errors}
"""

from __future__ import annotations

try:
    import mlx.core as mx
except ImportError as error:
    raise ImportError('vecina.mlx needs MLX: pip install mlx, on Linux "mlx[cpu]"') from error

import numpy as np

from vecina import _calls
from vecina._docs import filled

__doc__ = filled(__doc__ or "")

_DTYPES = {"float16": mx.float16, "float32": mx.float32, "float64": mx.float64}


def _numpy(array):
    """A view; bfloat16 is the uint16 that it is, as vecina.numpy takes it."""
    if not isinstance(array, mx.array):
        return array
    view = np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
    return view if view.ndim == 0 or view.strides[-1] == view.itemsize else view.copy()


def _mlx(array) -> mx.array:
    if array.dtype == np.uint16:
        return mx.array(array).view(mx.bfloat16)
    return mx.array(array, _DTYPES[array.dtype.name])


def _run(name: str, call: _calls.Call) -> tuple:
    for argument, array in call.arrays.items():
        if not isinstance(array, mx.array):
            kind = type(array).__name__
            raise ValueError(f"{name}: {argument} is {kind}; mlx.core.array is needed.")
    call.given.update((n, _numpy(value)) for n, value in call.given.items())

    @mx.custom_function
    def run(*arrays):
        return tuple(map(_mlx, call.forward(list(map(_numpy, arrays)))))

    @run.vjp
    def gradients(arrays, cotangents, results):
        groups = ([_numpy(array) for array in group] for group in (arrays, results, cotangents))
        return tuple(map(_mlx, call.backward(*groups)))

    return run(*call.arrays.values())


_functions = _calls.functions(_run, __name__)
attention = _functions["attention"]
attention_varlen = _functions["attention_varlen"]
av = _functions["av"]
merge_attentions = _functions["merge_attentions"]
na1d = _functions["na1d"]
na2d = _functions["na2d"]
na3d = _functions["na3d"]
neighborhood_attention = _functions["neighborhood_attention"]
neighborhood_attention_varlen = _functions["neighborhood_attention_varlen"]
qk = _functions["qk"]

__all__ = [
    "attention",
    "attention_varlen",
    "av",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_attention_varlen",
    "qk",
]
