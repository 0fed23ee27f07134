# SPDX-License-Identifier: MIT
"""Neighborhood attention on NumPy arrays, forward and backward.

{layout}
{strides}

dtypes: float16, float32, float64, and bfloat16 as ``ml_dtypes.bfloat16`` or as uint16. lse and its
gradients are float32 (float64 for float64).

{e4m3}
Arrays of it are those of ``ml_dtypes``, or uint8.

{errors}
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

try:
    import numpy as np
except ImportError as error:  # pragma: no cover
    raise ImportError("vecina.numpy needs NumPy: pip install numpy") from error

from vecina import _vecina, _windows
from vecina._docs import documented, filled
from vecina._shapes import Axes, Flags, extents_of, output_shape, rank_of, weights_shape

__doc__ = filled(__doc__ or "")

_ATTENTION = 0
_INPUTS = ("query", "key", "value", "additional_keys", "additional_values", "bias")


#: dtypes that the buffer protocol does not know -> what they are exported as
_EXPORTED = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8}


def _buffer(array):
    """What the buffer protocol can export."""
    if array is None or not hasattr(array, "dtype"):
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError("an array is masked, and masks are not taken; give its filled().")
    exported = _EXPORTED.get(array.dtype.name)
    return array if exported is None else array.view(exported)


def _lse_dtype(array):
    return np.float64 if array.dtype == np.float64 else np.float32


def _forward(rank, arrays, head_scale, parameters, return_lse):
    query, value = np.asanyarray(arrays[0]), np.asanyarray(arrays[2])
    shape = output_shape(query.shape, value.shape, parameters[5])
    output = np.empty(shape, value.dtype)
    lse = np.empty(shape[:-1], _lse_dtype(value)) if return_lse else None
    _vecina.forward(*map(_buffer, arrays), head_scale, _buffer(output), lse, rank, *parameters)
    return (output, lse) if return_lse else output


def _backward(rank, arrays, output, lse, grad_output, grad_lse, parameters):
    if any(hasattr(array, "dtype") and _buffer(array).dtype == np.uint8 for array in arrays[:2]):
        raise NotImplementedError("query and key in float8_e4m3fn have no gradients.")
    wanted = _new_gradients(arrays[:6])
    _vecina.backward(
        *map(_buffer, arrays),
        *map(_buffer, (output, lse, grad_output, grad_lse)),
        *map(_buffer, wanted),
        rank,
        *parameters,
    )
    return {f"grad_{name}": grad for name, grad in zip(_INPUTS, wanted) if grad is not None}


@documented
def neighborhood_attention(
    query,
    key,
    value,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys=None,
    additional_values=None,
    bias=None,
    lengths=None,
    head_scale=None,
    output_stride: Axes = 1,
    return_lse: bool = False,
    backend: str | None = None,
):
    """Each query attends to the window of keys around it; rank from the dimensions of query.

    Args:
        {window}

    Returns:
        {outputs}
    """
    rank = rank_of(np.shape(query))
    return _forward(
        rank,
        (query, key, value, additional_keys, additional_values, bias, lengths, None),
        head_scale,
        (kernel_size, stride, dilation, is_causal, scale, output_stride, None, None, backend),
        return_lse,
    )


def check_rank(query, rank: int) -> None:
    if np.ndim(query) != rank + 3:
        raise ValueError(
            f"query has {np.ndim(query)} dimensions; na{rank}d takes {rank + 3}: "
            "[batch, tokens..., heads, head_dim]."
        )


def _of_rank(rank: int):
    @functools.wraps(neighborhood_attention)
    def function(query, key, value, kernel_size, *args, **keywords):
        check_rank(query, rank)
        return neighborhood_attention(query, key, value, kernel_size, *args, **keywords)

    function.__name__ = function.__qualname__ = f"na{rank}d"
    function.__doc__ = f"neighborhood_attention() with {rank} axes of tokens."
    return function


na1d, na2d, na3d = _of_rank(1), _of_rank(2), _of_rank(3)


def neighborhood_attention_backward(
    query,
    key,
    value,
    output,
    lse,
    grad_output,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    grad_lse=None,
    additional_keys=None,
    additional_values=None,
    bias=None,
    lengths=None,
    output_stride: Axes = 1,
    backend: str | None = None,
) -> dict:
    """Gradients of neighborhood_attention() for every array that it was given.

    Args:
        output, lse: what neighborhood_attention(..., return_lse=True) returned.
        grad_output, grad_lse: gradients of them; grad_lse may be None.
        The others: as in neighborhood_attention().

    Returns:
        {"grad_query": ..., "grad_key": ..., "grad_value": ...}, and likewise
        grad_additional_keys, grad_additional_values and grad_bias if those were given.
    """
    return _backward(
        rank_of(np.shape(query)),
        (query, key, value, additional_keys, additional_values, bias, lengths, None),
        output,
        lse,
        grad_output,
        grad_lse,
        (kernel_size, stride, dilation, is_causal, scale, output_stride, None, None, backend),
    )


@documented
def attention(
    query,
    key,
    value,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    additional_keys=None,
    additional_values=None,
    head_scale=None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """
    {attention}
    """
    return _forward(
        _ATTENTION,
        (query, key, value, additional_keys, additional_values, None, None, None),
        head_scale,
        (None, 1, 1, is_causal, scale, 1, None, None, backend),
        return_lse,
    )


def attention_backward(
    query,
    key,
    value,
    output,
    lse,
    grad_output,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    grad_lse=None,
    additional_keys=None,
    additional_values=None,
    backend: str | None = None,
) -> dict:
    """Gradients of attention(); arguments and result as in neighborhood_attention_backward()."""
    return _backward(
        _ATTENTION,
        (query, key, value, additional_keys, additional_values, None, None, None),
        output,
        lse,
        grad_output,
        grad_lse,
        (None, 1, 1, is_causal, scale, 1, None, None, backend),
    )


def _packed(lengths, max_lengths, kernel_size=1, dilation=1):
    """(rank, the largest extents) of samples that lie one after another."""
    shape = np.shape(lengths)
    rank = shape[1] if len(shape) == 2 else 1
    if len(shape) not in (1, 2) or rank not in (1, 2, 3) or shape[0] == 0:
        raise ValueError(f"lengths has shape {shape}; [samples, rank] is needed.")
    if max_lengths is None:
        largest = np.reshape(lengths, (shape[0], -1)).max(0).tolist()
        max_lengths = extents_of(largest, kernel_size, dilation)
    return rank, max_lengths


@documented
def neighborhood_attention_varlen(
    query,
    key,
    value,
    lengths,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    max_lengths: Axes | None = None,
    additional_keys=None,
    additional_values=None,
    bias=None,
    head_scale=None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """neighborhood_attention() of samples that lie one after another, each of its own extents.

    Args:
        {packed}
        max_lengths: the largest extents; None looks at lengths.
        additional_keys, additional_values: ``[samples, n, heads_kv, head_dim]``.
        The others: as in neighborhood_attention().

    Returns:
        {packed_outputs}
    """
    rank, extents = _packed(lengths, max_lengths, kernel_size, dilation)
    return _forward(
        rank,
        (query, key, value, additional_keys, additional_values, bias, lengths, None),
        head_scale,
        (kernel_size, stride, dilation, is_causal, scale, 1, extents, None, backend),
        return_lse,
    )


def neighborhood_attention_varlen_backward(
    query,
    key,
    value,
    output,
    lse,
    grad_output,
    lengths,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    grad_lse=None,
    max_lengths: Axes | None = None,
    additional_keys=None,
    additional_values=None,
    bias=None,
    backend: str | None = None,
) -> dict:
    """Gradients of neighborhood_attention_varlen(), as in neighborhood_attention_backward()."""
    rank, extents = _packed(lengths, max_lengths, kernel_size, dilation)
    return _backward(
        rank,
        (query, key, value, additional_keys, additional_values, bias, lengths, None),
        output,
        lse,
        grad_output,
        grad_lse,
        (kernel_size, stride, dilation, is_causal, scale, 1, extents, None, backend),
    )


def attention_varlen(
    query,
    key,
    value,
    lengths,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    query_lengths=None,
    max_length: int | None = None,
    max_query_length: int | None = None,
    additional_keys=None,
    additional_values=None,
    head_scale=None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """attention() of samples that lie one after another, each of its own length.

    Args:
        query, key, value: ``[1, tokens of all samples, heads, head_dim]``.
        lengths: int32 or int64 ``[samples]``: keys of each sample.
        query_lengths: ``[samples]``: queries of each sample; None: as many as keys.
        max_length, max_query_length: the largest ones; None looks at the lengths.
        The others: as in attention().

    Returns:
        output ``[1, queries of all samples, heads, head_dim_value]``, with return_lse also lse
        ``[1, queries, heads]``.
    """
    extents = _packed(lengths, max_length)[1]
    query_extent = None if query_lengths is None else _packed(query_lengths, max_query_length)[1]
    return _forward(
        _ATTENTION,
        (query, key, value, additional_keys, additional_values, None, lengths, query_lengths),
        head_scale,
        (None, 1, 1, is_causal, scale, 1, extents, query_extent, backend),
        return_lse,
    )


def attention_varlen_backward(
    query,
    key,
    value,
    output,
    lse,
    grad_output,
    lengths,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    query_lengths=None,
    max_length: int | None = None,
    max_query_length: int | None = None,
    grad_lse=None,
    additional_keys=None,
    additional_values=None,
    backend: str | None = None,
) -> dict:
    """Gradients of attention_varlen(), as in neighborhood_attention_backward()."""
    extents = _packed(lengths, max_length)[1]
    query_extent = None if query_lengths is None else _packed(query_lengths, max_query_length)[1]
    return _backward(
        _ATTENTION,
        (query, key, value, additional_keys, additional_values, None, lengths, query_lengths),
        output,
        lse,
        grad_output,
        grad_lse,
        (None, 1, 1, is_causal, scale, 1, extents, query_extent, backend),
    )


@documented
def merge_attentions(outputs: Sequence, lses: Sequence, *, backend: str | None = None):
    """
    {merge}
    """
    if len(outputs) < 2 or len(outputs) != len(lses):
        raise ValueError("merge takes two or more outputs and as many lses.")
    output, lse = np.empty_like(outputs[0], order="C"), np.empty_like(lses[0], order="C")
    _vecina.merge(
        [_buffer(array) for array in outputs], list(lses), _buffer(output), lse, backend
    )
    return output, lse


def merge_attentions_backward(
    outputs: Sequence, lses: Sequence, grad_output, grad_lse=None, *, backend: str | None = None
):
    """Gradients of merge_attentions(): (one for each output, one for each lse)."""
    grad_outputs = [np.empty_like(array, order="C") for array in outputs]
    grad_lses = [np.empty_like(array, order="C") for array in lses]
    _vecina.merge_backward(
        [_buffer(array) for array in outputs],
        list(lses),
        _buffer(grad_output),
        grad_lse,
        [_buffer(array) for array in grad_outputs],
        grad_lses,
        backend,
    )
    return grad_outputs, grad_lses


def _new_gradients(arrays) -> list:
    return [None if array is None else np.empty(array.shape, array.dtype) for array in arrays]


def _split_backward(function, arrays: dict, gradient, parameters: tuple) -> dict:
    wanted = _new_gradients(arrays.values())
    function(*map(_buffer, (*arrays.values(), gradient, *wanted)), parameters)
    return {f"grad_{name}": g for name, g in zip(arrays, wanted) if g is not None}


def _new_weights(query, kernel_size, output_stride, additional_keys):
    shape = np.shape(query)
    rank = rank_of(shape, "qk")
    axes = (
        _windows.per_axis("kernel_size", int, kernel_size, rank),
        _windows.per_axis("output_stride", int, output_stride, rank),
    )
    additional = None if additional_keys is None else np.shape(additional_keys)
    return np.empty(weights_shape(shape, *axes, additional), np.asanyarray(query).dtype)


@documented
def qk(
    query,
    key,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys=None,
    bias=None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
):
    """Logits of every query over its window: the first half of neighborhood_attention().

    Args:
        right_aligned: a causal window that the border cuts has its empty slots first, not last.
        The others are those of neighborhood_attention().

    Returns:
        {logits}
    """
    weights = _new_weights(query, kernel_size, output_stride, additional_keys)
    _vecina.qk(
        *map(_buffer, (query, key, additional_keys, bias, weights)),
        (np.ndim(query) - 3, kernel_size, stride, dilation, is_causal, scale, output_stride,
         right_aligned, backend),
    )  # fmt: skip
    return weights


def qk_backward(
    query,
    key,
    grad_weights,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys=None,
    bias=None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
) -> dict:
    """Gradients of qk() for every array that it was given, by name, each of its array's shape.

    grad_weights is that of its result, ``[batch, queries..., heads, slots]``; slots without a key
    are not looked at. The other arguments are those of qk().
    """
    return _split_backward(
        _vecina.qk_backward,
        dict(query=query, key=key, additional_keys=additional_keys, bias=bias),
        grad_weights,
        (rank_of(np.shape(query), "qk_backward"), kernel_size, stride, dilation, is_causal, scale,
         output_stride, right_aligned, backend),
    )  # fmt: skip


def av(
    attention,
    value,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    additional_values=None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
):
    """Weighted sums of values over the windows: the second half of neighborhood_attention().

    attention is ``[batch, queries..., heads, slots]`` as qk() lays it; slots without a key are not
    looked at. Returns ``[batch, queries..., heads, head_dim_value]``.
    """
    rank = rank_of(np.shape(value), "av")
    output = np.empty((*np.shape(attention)[:-1], np.shape(value)[-1]), np.asanyarray(value).dtype)
    _vecina.av(
        *map(_buffer, (attention, value, additional_values, output)),
        (rank, kernel_size, stride, dilation, is_causal, None, output_stride, right_aligned,
         backend),
    )  # fmt: skip
    return output


def av_backward(
    attention,
    value,
    grad_output,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    additional_values=None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
) -> dict:
    """Gradients of av() for every array that it was given, by name, each of its array's shape.

    grad_output is ``[batch, queries..., heads, head_dim_value]``; the other arguments are those of
    av(). The gradient of attention is 0 in slots without a key.
    """
    return _split_backward(
        _vecina.av_backward,
        dict(attention=attention, value=value, additional_values=additional_values),
        grad_output,
        (rank_of(np.shape(value), "av_backward"), kernel_size, stride, dilation, is_causal, None,
         output_stride, right_aligned, backend),
    )  # fmt: skip


__all__ = [
    "attention",
    "attention_backward",
    "attention_varlen",
    "attention_varlen_backward",
    "av",
    "av_backward",
    "merge_attentions",
    "merge_attentions_backward",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_attention_backward",
    "neighborhood_attention_varlen",
    "neighborhood_attention_varlen_backward",
    "qk",
    "qk_backward",
]
