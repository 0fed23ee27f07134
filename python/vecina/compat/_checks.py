# SPDX-License-Identifier: MIT
"""What NATTEN asks of arguments beyond vecina's rules, with its types of errors."""

from __future__ import annotations

import math

from vecina._windows import per_axis


def check_kernel_size_arg(na_dim: int, kernel_size) -> tuple[int, ...]:
    """One value for each axis, of 2 or more."""
    values = per_axis("kernel_size", int, kernel_size, na_dim)
    if min(values) < 2:
        raise ValueError(f"kernel_size is {kernel_size!r}; 2 or more is needed along each axis.")
    return values


def _positive(name: str, value, na_dim: int) -> tuple[int, ...]:
    values = per_axis(name, int, 1 if value is None else value, na_dim)
    if min(values) < 1:
        raise ValueError(f"{name} is {value!r}; 1 or more is needed along each axis.")
    return values


def check_stride_arg(na_dim: int, stride) -> tuple[int, ...]:
    return _positive("stride", stride, na_dim)


def check_dilation_arg(na_dim: int, dilation) -> tuple[int, ...]:
    return _positive("dilation", dilation, na_dim)


def check_causal_arg(na_dim: int, is_causal) -> tuple[bool, ...]:
    return per_axis("is_causal", bool, False if is_causal is None else is_causal, na_dim)


def check_all_args(na_dim: int, kernel_size, *rest):
    """(kernel_size, [stride,] dilation, is_causal), each with a value for each axis.

    0.17 had no stride, so it takes three arguments after na_dim, later releases four.
    """
    if len(rest) not in (2, 3):
        raise TypeError(f"check_all_args() takes 4 or 5 arguments, not {len(rest) + 2}.")
    kernel = check_kernel_size_arg(na_dim, kernel_size)
    numbers = [_positive("stride or dilation", value, na_dim) for value in rest[:-1]]
    if len(numbers) == 2 and any(s > k for s, k in zip(numbers[0], kernel)):
        raise ValueError(f"stride {numbers[0]} exceeds kernel_size {kernel}.")
    return (kernel, *numbers, check_causal_arg(na_dim, rest[-1]))


def check_args_against_input(input_tensor, kernel_size, stride, dilation, is_causal) -> None:
    tokens = input_tensor.shape[1 : 1 + len(kernel_size)]
    for n, k, d, s in zip(tokens, kernel_size, dilation, stride):
        if k * d > n:
            raise ValueError(f"kernel_size {k} x dilation {d} exceeds {n} tokens.")
        if s > k:
            raise ValueError(f"stride {s} exceeds kernel_size {k}.")


def get_num_na_weights(kernel_size) -> int:
    """Slots of a window."""
    return math.prod(kernel_size)
