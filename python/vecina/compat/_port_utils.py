# SPDX-License-Identifier: MIT
"""``utils.params`` of natten-mps and natten-mlx: every mistake is a ValueError."""

from __future__ import annotations

from vecina._windows import per_axis


def normalize_tuple_param(param, rank: int, name: str) -> tuple:
    """One value for each axis: all bool, or all int of 1 or more."""
    kind = bool if isinstance(param, bool) or (
        isinstance(param, (tuple, list)) and any(isinstance(p, bool) for p in param)
    ) else int  # fmt: skip
    values = per_axis(name, kind, param, rank)
    if kind is int and min(values) < 1:
        raise ValueError(f"{name} is {param!r}; 1 or more is needed along each axis.")
    return values


def normalize_kernel_size(kernel_size, rank: int) -> tuple[int, ...]:
    values = normalize_tuple_param(kernel_size, rank, "kernel_size")
    if isinstance(values[0], bool):
        raise ValueError(f"kernel_size is {kernel_size!r}; int is needed.")
    return values


def _check_ranks(*values) -> None:
    if len({len(value) for value in values}) != 1:
        raise ValueError(f"{', '.join(map(str, values))} are not for as many axes.")


def check_kernel_size_vs_input(kernel_size, input_spatial_shape) -> None:
    _check_ranks(kernel_size, input_spatial_shape)
    for k, n in zip(kernel_size, input_spatial_shape):
        if k > n:
            raise ValueError(f"kernel_size {k} exceeds {n} tokens.")


def check_stride_vs_kernel(stride, kernel_size) -> None:
    _check_ranks(stride, kernel_size)
    for s, k in zip(stride, kernel_size):
        if s > k:
            raise ValueError(f"stride {s} must be <= kernel_size {k}.")


def check_dilation_kernel_vs_input(dilation, kernel_size, input_spatial_shape) -> None:
    _check_ranks(dilation, kernel_size, input_spatial_shape)
    for d, k, n in zip(dilation, kernel_size, input_spatial_shape):
        if d * k > n:
            raise ValueError(f"dilation {d} x kernel_size {k} exceeds {n} tokens.")
