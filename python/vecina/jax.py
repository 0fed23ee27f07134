# SPDX-License-Identifier: MIT
"""Neighborhood attention on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

{layout}

The arguments are those of vecina.numpy. vecina's CPU backend computes, in a callback on the host:
arrays of other devices are brought there, and ``vmap`` calls it for one after another. lengths must
be known when a function is traced. What does not fit is said when the call runs, by a
``jax.errors.JaxRuntimeError`` with the words of vecina.numpy. Gradients do not have gradients.

dtypes: float16, bfloat16, float32, float64. lse and bias are float32 (float64 for float64).
"""

from __future__ import annotations

try:
    import jax
except ImportError as error:
    raise ImportError("vecina.jax needs JAX: pip install jax") from error

import numpy as np

from vecina import _calls, _windows
from vecina._docs import filled
from vecina._shapes import output_shape, rank_of, weights_shape

__doc__ = filled(__doc__ or "")


def _like(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _results_of(name: str, call: _calls.Call) -> tuple:
    """Shapes and dtypes of what the call gives."""
    arrays, given = call.arrays, call.given
    if name == "merge_attentions":
        parts = list(arrays.values())
        return tuple(_like(a.shape, a.dtype) for a in (parts[0], parts[len(parts) // 2]))
    if name == "av":
        attention, value = arrays["attention"], arrays["value"]
        return (_like((*attention.shape[:-1], value.shape[-1]), value.dtype),)
    query, step = arrays["query"], given.get("output_stride", 1)
    if name == "qk":
        rank, more = rank_of(query.shape, name), arrays.get("additional_keys")
        axes = (_windows.per_axis("kernel_size", int, given["kernel_size"], rank),
                _windows.per_axis("output_stride", int, step, rank))  # fmt: skip
        shape = weights_shape(query.shape, *axes, None if more is None else more.shape)
        return (_like(shape, query.dtype),)
    shape = output_shape(query.shape, arrays["value"].shape, step)
    wide = np.float64 if query.dtype == np.float64 else np.float32
    return _like(shape, query.dtype), _like(shape[:-1], wide)


def _on_host(function, like, *groups):
    """function of the groups' arrays as NumPy's; it gives as many arrays as like describes."""

    def call(*groups):
        return tuple(function(*([np.asarray(array) for array in group] for group in groups)))

    return jax.pure_callback(call, like, *groups, vmap_method="sequential")


def _run(name: str, call: _calls.Call) -> tuple:
    for argument, value in call.given.items():
        if isinstance(value, jax.Array):
            call.given[argument] = np.asarray(value)
    results = _results_of(name, call)

    @jax.custom_vjp
    def run(*arrays):
        return _on_host(call.forward, results, arrays)

    def forward(*arrays):
        found = run(*arrays)
        return found, (arrays, found)

    def backward(saved, gradients):
        like = tuple(_like(array.shape, array.dtype) for array in saved[0])
        return _on_host(call.backward, like, *saved, gradients)

    run.defvjp(forward, backward)
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
