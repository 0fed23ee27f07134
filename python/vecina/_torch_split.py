# SPDX-License-Identifier: MIT
"""qk() and av(): the two halves of neighborhood attention, of PyTorch's own operations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vecina import _windows
from vecina._shapes import Axes, Flags, rank_of

# A compiler cannot look into the extension, so to it the tables are an op without tensors.
_library = torch.library.Library("vecina", "FRAGMENT")
_library.define(
    "axis_tables(int tokens, int kernel_size, int stride, int dilation, bool is_causal, "
    "int output_stride, bool right_aligned) -> (Tensor, Tensor, Tensor)"
)


def _axis_tables(*arguments):
    axis = _windows.Axis(int(arguments[0]), *arguments[1:-1])
    return tuple(torch.tensor(rows) for rows in _windows.axis_lists(axis, arguments[-1]))


def _axis_tables_fake(tokens, kernel_size, stride, dilation, is_causal, output_stride, aligned):
    shape = ((tokens + output_stride - 1) // output_stride, kernel_size)
    return (
        torch.empty(shape, dtype=torch.int64),
        torch.empty(shape, dtype=torch.int64),
        torch.empty(shape, dtype=torch.bool),
    )


_library.impl("axis_tables", _axis_tables, "CompositeExplicitAutograd")
torch.library.register_fake("vecina::axis_tables", _axis_tables_fake, lib=_library)


def _make_tables(axes, right_aligned, device, axis_tables=_axis_tables):
    parts = [axis_tables(*axis, right_aligned) for axis in axes]
    return _windows.combine(axes, [tuple(table.to(device) for table in part) for part in parts])


_held_tables = functools.lru_cache(maxsize=64)(_make_tables)


def _tables(axes, right_aligned, device):
    if torch.compiler.is_dynamo_compiling():
        return _make_tables(axes, right_aligned, device, torch.ops.vecina.axis_tables)
    if torch._C._len_torch_dispatch_stack() or torch.compiler.is_compiling():
        return _make_tables(axes, right_aligned, device)  # fake tensors are not for keeping
    return _held_tables(axes, right_aligned, device)


def qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    bias: Tensor | None = None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
) -> Tensor:
    """Logits of every query over its window: the first half of neighborhood_attention().

    Composed of PyTorch's operations on gathered windows: differentiable any number of times, also
    forward, on every device; it takes tokens x window x head_dim numbers of memory and many times
    the time of neighborhood_attention(). Use it where the logits themselves are needed.

    Args:
        right_aligned: a causal window that the border cuts has its empty slots first, not last.
        The others are those of neighborhood_attention().

    Returns:
        ``[batch, queries..., heads, slots]``, slots row-major over the axes of the window, then the
        additional tokens; -inf in slots without a key.
    """
    rank = rank_of(query.shape, "qk")
    axes = _windows.axes_of(
        query.shape[1 : 1 + rank], kernel_size, stride, dilation, is_causal, output_stride
    )
    tables = _tables(axes, right_aligned, query.device)
    return _windows.compose_qk(torch, tables, query, key, axes, scale, additional_keys, bias)


def av(
    attention: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    additional_values: Tensor | None = None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
) -> Tensor:
    """Weighted sums of values over the windows: the second half of neighborhood_attention().

    attention is ``[batch, queries..., heads, slots]`` as qk() lays it; slots without a key count
    as 0. Returns ``[batch, queries..., heads, head_dim_value]``. Memory and speed as with qk().
    """
    rank = rank_of(value.shape, "av")
    axes = _windows.axes_of(
        value.shape[1 : 1 + rank], kernel_size, stride, dilation, is_causal, output_stride
    )
    tables = _tables(axes, right_aligned, value.device)
    return _windows.compose_av(torch, tables, attention, value, axes, additional_values)
