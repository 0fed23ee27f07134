# SPDX-License-Identifier: MIT
"""Neighborhood attention on MLX arrays, differentiable by ``mx.grad`` and ``mx.value_and_grad``.

{layout}

The arguments are those of vecina.numpy. vecina's CPU backend computes on the arrays' own memory,
at once: what a call needs is evaluated by it, and it cannot stand inside ``mx.compile`` or
``mx.vmap``, which say so. An argument is copied only if its last dimension is not contiguous.
Gradients do not have gradients, and there is no ``mx.jvp``; NotImplementedError says so.

dtypes: float16, bfloat16, float32, float64. lse and bias are float32 (float64 for float64).
head_scale is refused, because MLX has no float8_e4m3fn.

{errors}
"""

from __future__ import annotations

import itertools

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


def _refuse(name: str):
    """A transform of MLX's that says what it cannot do; without it, MLX gives zeros."""

    def transform(*_):
        raise NotImplementedError(f"vecina.mlx: {name} cannot be computed.")

    return transform


def _run(call: _calls.Call, arrays: tuple) -> tuple:
    @mx.custom_function
    def run(*arrays):
        return tuple(map(_mlx, call.forward(list(map(_numpy, arrays)))))

    @run.vjp
    def gradients(arrays, cotangents, results):
        groups = arrays, results, cotangents
        ends = list(itertools.accumulate(map(len, groups)))

        @mx.custom_function
        def backward(*flat):
            flat = list(map(_numpy, flat))
            return tuple(map(_mlx, call.backward(*(flat[a:b] for a, b in zip([0, *ends], ends)))))

        backward.vjp(_refuse("gradients of gradients"))
        backward.jvp(_refuse("forward-mode derivatives"))
        return backward(*itertools.chain(*groups))

    run.jvp(_refuse("forward-mode derivatives"))
    return run(*arrays)


_functions = _calls.functions(_run, (mx.array,), _numpy, __name__)
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

# At the end, because the modules call the functions above.
from vecina._mlx_modules import (  # noqa: E402
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
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
