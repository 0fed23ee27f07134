# SPDX-License-Identifier: MIT
"""``natten.utils``: device, environment, misc and tuples."""

from __future__ import annotations

import os

import torch


def is_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None


def is_rocm(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is not None


def is_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def get_device_cc(device: torch.device | None = None) -> int:
    """Compute capability of a CUDA device as a number, 90 for 9.0; 0 where there is none."""
    if not torch.cuda.is_available() or (device is not None and not is_cuda(torch.device(device))):
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def parse_env_str(env_var: str, default: str) -> str:
    return os.environ.get(env_var, default)


def parse_env_int(env_var: str, default: int) -> int:
    """The default for what is no number."""
    try:
        return int(os.environ.get(env_var, default))
    except ValueError:
        return default


def parse_env_flag(env_var: str, default: bool) -> bool:
    """The default for what is neither 0 nor 1."""
    return {"0": False, "1": True}.get(os.environ.get(env_var, ""), default)


def is_torch_compiling() -> bool:
    return torch.compiler.is_compiling()


def ceil_div_int(x: int, y: int) -> int:
    return -(-x // y)


def _by_axis(function):
    def each(X: tuple, Y: tuple) -> tuple:
        assert len(X) == len(Y), f"{X} and {Y} are not for as many axes."
        return tuple(map(function, X, Y))

    return each


ceil_div_tuple = _by_axis(ceil_div_int)
mul_tuple = _by_axis(lambda x, y: x * y)
sub_tuple = _by_axis(lambda x, y: x - y)


def create_dim_from_int(na_dim: int, value: int) -> tuple[int, ...]:
    return (value,) * na_dim


create_causal_arg_from_bool = create_dim_from_int
