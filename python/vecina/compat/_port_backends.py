# SPDX-License-Identifier: MIT
"""What natten-mps and natten-mlx say of backends; which one is chosen, by name, for the process.

"pure" and "auto" are vecina's backend for the tensors' device; the ports' Metal backends are not
there. A module of the ports' own plug-in form (register_backend) is called instead when chosen.
"""

from __future__ import annotations

import os


class Choice:
    """Names of backends with their registered modules (None: vecina), and the chosen name."""

    def __init__(self, *names: str):
        self.modules: dict = dict.fromkeys(names)
        named = os.environ.get("NATTEN_BACKEND", "auto")
        self.chosen = named if named in self.modules else "auto"

    def choose(self, name: str) -> None:
        if name != "auto" and name not in self.modules:
            raise ValueError(f"backend {name!r} is none of auto, {', '.join(self.modules)}.")
        self.chosen = name

    def name(self) -> str:
        return "pure" if self.chosen == "auto" else self.chosen

    def module(self):
        return self.modules.get(self.name())


def is_available() -> bool:
    """Of the ports' Metal backends: they are not there."""
    return False


def has_metal() -> bool:
    return False


def has_nanobind() -> bool:
    return False


def has_cuda() -> bool:
    return False


def has_mps() -> bool:
    """True on a Mac whose PyTorch has MPS."""
    try:
        import torch
    except ImportError:
        return False
    return torch.backends.mps.is_available()


def has_mlx() -> bool:
    return True


def add_natten_handle(flop_counter):
    """The counter as it is: fvcore, of which natten-mlx has this from NATTEN, counts PyTorch's."""
    return flop_counter


def has_fna() -> bool:
    return False


def has_gemm() -> bool:
    return False
