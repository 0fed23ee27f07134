# SPDX-License-Identifier: MIT
"""Neighborhood attention on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

{layout}

The arguments are those of vecina.numpy. vecina's CPU backend computes, in a callback on the host,
from JAX's memory into JAX's memory; arrays of other devices are brought there and back. ``vmap``
calls it for one after another. lengths must be known when a function is traced; head_scale need not
be. An array of a wrong type or dtype is refused at once by a ValueError; what else does not fit is
said by one too, or when the call runs, by a ``jax.errors.JaxRuntimeError`` with the words of
vecina.numpy. Gradients do not have gradients.

dtypes: float16, bfloat16, float32, float64. lse and bias are float32 (float64 for float64).

{e4m3}
"""

from __future__ import annotations

import dataclasses
import functools

try:
    import jax
except ImportError as error:
    raise ImportError("vecina.jax needs JAX: pip install jax") from error

import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from vecina import _calls, _windows
from vecina._docs import filled
from vecina._shapes import output_shape, rank_of, weights_shape

__doc__ = filled(__doc__ or "")


def _like(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _results_of(call: _calls.Call, arrays: tuple) -> tuple:
    """Shapes and dtypes of what the call gives."""
    name, given, named = call.name, call.given, dict(zip(call.names, arrays))
    if name == "merge_attentions":
        return tuple(_like(a.shape, a.dtype) for a in (arrays[0], arrays[len(arrays) // 2]))
    if name == "av":
        attention, value = named["attention"], named["value"]
        return (_like((*attention.shape[:-1], value.shape[-1]), value.dtype),)
    query, step = named["query"], 1
    if name in ("qk", "neighborhood_attention"):
        rank = rank_of(query.shape, name)
        step = _windows.per_axis("output_stride", int, given.get("output_stride", 1), rank)
    if name == "qk":
        size = _windows.per_axis("kernel_size", int, given["kernel_size"], rank)
        more = named.get("additional_keys")
        shape = weights_shape(query.shape, size, step, None if more is None else more.shape)
        return (_like(shape, query.dtype),)
    value = named["value"]
    shape = output_shape(query.shape, value.shape, step)
    wide = np.float64 if value.dtype == np.float64 else np.float32
    return _like(shape, value.dtype), _like(shape[:-1], wide)


@dataclasses.dataclass(frozen=True)
class _OnHost:
    """One pass of a call. JAX compiles it once for all that are equal, and keeps it for ever."""

    call: _calls.Call
    name: str  # forward or backward

    def __call__(self, *groups) -> tuple:
        arrays = ([np.asarray(array) for array in group] for group in groups)
        return tuple(getattr(self.call, self.name)(*arrays))


@dataclasses.dataclass(frozen=True)
class _InPlace:
    """The same on JAX's own buffers.

    pure_callback() copies large arrays on the threads that run the callback: with one they wait for
    each other for ever.
    """

    run: _OnHost

    def __call__(self, context, outputs, *groups) -> None:
        for output, array in zip(outputs, self.run(*groups)):
            np.asarray(output)[...] = array


def _on_host(call: _calls.Call, name: str, like: tuple, *groups) -> tuple:
    """That pass of the call over groups of arrays; it gives arrays as like describes them."""
    run = _OnHost(call, name)
    return jax.lax.platform_dependent(
        *groups,
        cpu=buffer_callback(_InPlace(run), like, vmap_method="sequential"),
        default=lambda *g: jax.pure_callback(run, like, *g, vmap_method="sequential"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(call: _calls.Call, arrays: tuple) -> tuple:
    return _on_host(call, "forward", _results_of(call, arrays), arrays)


def _forward(call, arrays):
    if arrays[0].dtype == jax.numpy.float8_e4m3fn:
        raise NotImplementedError("query and key in float8_e4m3fn have no gradients.")
    found = _on_host(call, "forward", _results_of(call, arrays), arrays)
    return found, (arrays, found)


def _backward(call, saved, gradients):
    like = tuple(_like(array.shape, array.dtype) for array in saved[0])
    return (_on_host(call, "backward", like, *saved, gradients),)


_run.defvjp(_forward, _backward)


def _compute(call: _calls.Call, arrays: tuple) -> tuple:
    return _run(call, tuple(map(jax.numpy.asarray, arrays)))  # NumPy's become JAX's


def _numpy(value):
    return np.asarray(value) if isinstance(value, jax.Array) else value


_functions = _calls.functions(_compute, (jax.Array, np.ndarray), _numpy, __name__)
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
