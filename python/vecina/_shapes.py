# SPDX-License-Identifier: MIT
"""Shapes of what a call writes; every rule about what it reads is the library's."""

from __future__ import annotations

from collections.abc import Sequence

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
