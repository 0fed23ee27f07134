# SPDX-License-Identifier: MIT
"""Windows as index tables, and the halves of attention, of a framework's own operations.

The window is the library's (``_vecina.windows``); it is not worked out a second time here. What
follows gathers every window, so it takes tokens x window x head_dim numbers of memory: for models
that need the logits themselves, for exporters and for checks, not for speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from vecina import _vecina


class Axis(NamedTuple):
    """One axis: its tokens and what a call says about it."""

    tokens: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool
    output_stride: int


class Tables(NamedTuple):
    """For every query (rows) and slot of the window (columns), row-major over the axes."""

    index: object  # token of the key, flattened over the axes
    bias: object  # element of a head's bias, flattened
    seen: object  # False where a causal window has no key


def per_axis(name: str, kind: type, value, rank: int) -> tuple:
    """One value for each axis; ValueError says what is wrong."""
    if type(value) is kind:
        return (value,) * rank
    values = (value,) * rank if isinstance(value, int) else value
    if not isinstance(values, Sequence) or len(values) != rank:
        raise ValueError(
            f"{name} is {value!r}; one {kind.__name__} or a sequence of {rank} is needed, one for "
            "each axis."
        )
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) != (kind is bool):
            raise ValueError(f"{name} is {value!r}; {kind.__name__} is needed.")
    return tuple(values)


def axes_of(tokens, kernel_size, stride, dilation, is_causal, output_stride) -> tuple[Axis, ...]:
    """The axes of a call. What does not fit together, the library says when it makes the tables."""
    rank = len(tokens)
    return tuple(
        map(
            Axis,
            tokens,
            per_axis("kernel_size", int, kernel_size, rank),
            per_axis("stride", int, stride, rank),
            per_axis("dilation", int, dilation, rank),
            per_axis("is_causal", bool, is_causal, rank),
            per_axis("output_stride", int, output_stride, rank),
        )
    )


@functools.lru_cache(maxsize=512)
def axis_lists(axis: Axis, right_aligned: bool) -> tuple[list, list, list]:
    """index, bias and seen of one axis, as lists of rows.

    Of a causal window that the border cuts, the empty slots come last, or first (right_aligned).
    """
    line = f"1d {axis.tokens} head_dim 1"
    for name in ("kernel_size", "stride", "dilation", "output_stride"):
        line += f" {name} {getattr(axis, name)}"
    rows = _vecina.windows(line + (" causal" if axis.is_causal else ""), 0)
    index, bias, seen = [], [], []
    for j, (begin, step, count) in enumerate(rows):
        query, missing = j * axis.output_stride, axis.kernel_size - count
        keys = [begin + step * i for i in range(count)]
        relative = [(key - query) // axis.dilation + axis.kernel_size - 1 for key in keys]
        filled = (index, keys, 0), (bias, relative, 0), (seen, [True] * count, False)
        for table, row, empty in filled:
            table.append([empty] * missing + row if right_aligned else row + [empty] * missing)
    return index, bias, seen


def _product(outer, inner, size: int | None):
    # A number each of two axes makes one number of both; of two truths, "and" (size None).
    outer_rows, inner_rows = outer[:, None, :, None], inner[None, :, None, :]
    rows = outer_rows & inner_rows if size is None else outer_rows * size + inner_rows
    return rows.reshape((outer.shape[0] * inner.shape[0], outer.shape[1] * inner.shape[1]))


def combine(axes: tuple[Axis, ...], parts: Sequence[tuple]) -> Tables:
    """The tables of a problem from those of its axes, which are a framework's tensors."""
    index, bias, seen = parts[0]
    for axis, (axis_index, axis_bias, axis_seen) in zip(axes[1:], parts[1:]):
        index = _product(index, axis_index, axis.tokens)
        bias = _product(bias, axis_bias, 2 * axis.kernel_size - 1)
        seen = _product(seen, axis_seen, None)
    return Tables(index, bias, seen)


def check_shapes(query, key, axes: tuple[Axis, ...], bias, additional) -> None:
    """ValueError if what the composition would silently broadcast does not fit."""
    if len(query) != len(key) or query[:-2] != key[:-2] or query[-1] != key[-1]:
        raise ValueError(
            f"query has shape {tuple(query)}, key {tuple(key)}; all but heads must be equal."
        )
    if key[-2] < 1 or query[-2] % key[-2]:
        raise ValueError(f"heads {query[-2]} is not a multiple of heads_kv {key[-2]}.")
    if bias is not None:
        needed = (query[-2], *(2 * axis.kernel_size - 1 for axis in axes))
        if tuple(bias) != needed:
            raise ValueError(f"bias has shape {tuple(bias)}; {needed} is needed.")
    check_additional("additional_keys", additional, key)


def check_additional(name: str, additional, other) -> None:
    if additional is None:
        return
    if len(additional) != 4 or additional[0] != other[0] or additional[2:] != other[-2:]:
        raise ValueError(
            f"{name} has shape {tuple(additional)}; [batch {other[0]}, tokens, heads_kv "
            f"{other[-2]}, {other[-1]}] is needed."
        )


def compose_qk(xp, tables, query, key, axes, scale, additional_keys, bias):
    """Logits ``[batch, queries..., heads, window + additional]``; -inf where there is no key.

    xp is the framework's namespace; tables are its tensors, where query lies.
    """
    check_shapes(
        query.shape, key.shape, axes, None if bias is None else bias.shape,
        None if additional_keys is None else additional_keys.shape,
    )  # fmt: skip
    batch, heads, head_dim, heads_kv = query.shape[0], *query.shape[-2:], key.shape[-2]
    rows = query[(slice(None), *(slice(None, None, axis.output_stride) for axis in axes))]
    queries = rows.shape[1:-2]
    rows = rows.reshape((batch, -1, heads_kv, heads // heads_kv, head_dim))
    rows = rows * (head_dim**-0.5 if scale is None else scale)
    keys = key.reshape((batch, -1, heads_kv, head_dim))[:, tables.index]
    logits = xp.einsum("bqhgd,bqkhd->bqhgk", rows, keys)
    logits = logits.reshape((batch, -1, heads, tables.index.shape[1]))
    if bias is not None:
        logits = logits + xp.moveaxis(bias.reshape((heads, -1))[:, tables.bias], 0, 1)
    if any(axis.is_causal for axis in axes):
        logits = xp.where(tables.seen[:, None], logits, -math.inf)
    if additional_keys is not None:
        more = xp.einsum("bqhgd,bnhd->bqhgn", rows, additional_keys)
        more = more.reshape((*logits.shape[:-1], additional_keys.shape[1]))
        logits = xp.concatenate((logits, more), -1)
    return logits.reshape((batch, *queries, heads, logits.shape[-1]))


def compose_av(xp, tables, attention, value, axes, additional_values):
    """Output ``[batch, queries..., heads, head_dim_value]`` of weights laid as in compose_qk()."""
    window = tables.index.shape[1]
    additional = 0 if additional_values is None else additional_values.shape[1]
    batch, heads_kv, head_dim = value.shape[0], *value.shape[-2:]
    queries, heads = attention.shape[1:-2], attention.shape[-2]
    needed = tuple(-(-axis.tokens // axis.output_stride) for axis in axes)
    if attention.ndim != value.ndim or attention.shape[0] != batch or tuple(queries) != needed:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}; batch {batch}, queries {needed}, heads "
            "and slots are needed."
        )
    if attention.shape[-1] != window + additional:
        raise ValueError(
            f"attention has {attention.shape[-1]} slots; the window has {window} and there are "
            f"{additional} additional tokens."
        )
    if heads_kv < 1 or heads % heads_kv:
        raise ValueError(f"heads {heads} is not a multiple of heads_kv {heads_kv}.")
    if additional_values is not None:
        check_additional("additional_values", additional_values.shape, value.shape)
    weights = attention.reshape((batch, -1, heads_kv, heads // heads_kv, window + additional))
    near = weights[..., :window]
    if any(axis.is_causal for axis in axes):
        near = xp.where(tables.seen[:, None, None], near, 0)
    values = value.reshape((batch, -1, heads_kv, head_dim))[:, tables.index]
    output = xp.einsum("bqhgk,bqkhd->bqhgd", near, values)
    if additional_values is not None:
        output = output + xp.einsum("bqhgn,bnhd->bqhgd", weights[..., window:], additional_values)
    return output.reshape((batch, *queries, heads, head_dim))
