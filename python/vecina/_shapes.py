# SPDX-License-Identifier: MIT
"""Shapes of what a call writes; every rule about what it reads is the library's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vecina._windows import per_axis

#: What a parameter with a value for each axis takes: one value for all, or one for each.
Axes = int | Sequence[int]
Flags = bool | Sequence[bool]


def output_shape(query, value, output_stride: Axes) -> tuple[int, ...]:
    """Shape of the output: tokens of query (every output_stride-th), heads, head_dim_value.

    Wrong arguments give some shape; the call that then sees all tensors says what is wrong.
    """
    if output_stride == 1 and query[-1] == value[-1]:
        return query
    tokens = tuple(query[1:-2])
    if output_stride != 1:
        steps = (
            (output_stride,) * len(tokens)
            if isinstance(output_stride, int)
            else tuple(output_stride)
        )
        tokens = tuple(-(-n // max(int(s), 1)) for n, s in zip(tokens, steps))
    return (*query[:1], *tokens, *query[-2:-1], *value[-1:])


def rank_of(query, name: str = "neighborhood_attention") -> int:
    """1, 2 or 3, from the dimensions of query."""
    rank = len(query) - 3
    if rank not in (1, 2, 3):
        raise ValueError(
            f"query has {len(query)} dimensions; {name} takes [batch, tokens..., heads, head_dim] "
            "with one, two or three axes of tokens."
        )
    return rank


def extents_of(largest: list[int], kernel_size: Axes, dilation: Axes) -> list[int]:
    """The largest extents of packed samples; where all are empty along one, a window's."""
    if all(largest):
        return largest
    rank = len(largest)
    windows = (per_axis("kernel_size", int, kernel_size, rank),
               per_axis("dilation", int, dilation, rank))  # fmt: skip
    return [most or size * step for most, size, step in zip(largest, *windows)]


def weights_shape(query, kernel_size: tuple, output_stride: tuple, additional) -> tuple[int, ...]:
    """Shape of the weights of qk(), from the shapes of query and additional_keys (None: none).

    Wrong arguments give some shape, as in output_shape().
    """
    slots = math.prod(max(size, 0) for size in kernel_size)
    slots += additional[1] if additional is not None and len(additional) == 4 else 0
    tokens = (-(-n // max(step, 1)) for n, step in zip(query[1:-2], output_stride))
    return (*query[:1], *tokens, *query[-2:-1], slots)
