# SPDX-License-Identifier: MIT
"""What natten-mps and natten-mlx say of backends; which one is chosen, by name, for the process.

"pure" and "auto" are vecina's backend for the tensors' device; the ports' Metal backends are not
there. A module of the ports' own plug-in form (register_backend) is called instead when chosen.
"""

from __future__ import annotations

import os


class Choice:
    """Names of backends with their registered modules (None: vecina), and the chosen name.

    The methods are a port's functions, by their names there.
    """

    def __init__(self, *names: str):
        self.modules: dict = dict.fromkeys(names)
        named = os.environ.get("NATTEN_BACKEND", "auto")
        self.chosen = named if named in self.modules else "auto"

    def register_backend(self, name: str, module) -> None:
        """Makes a module with na{1,2,3}d_forward what is called when name is chosen."""
        self.modules[name] = module

    def set_backend(self, name: str) -> None:
        """ValueError for an unknown name."""
        if name != "auto" and name not in self.modules:
            raise ValueError(f"backend {name!r} is none of auto, {', '.join(self.modules)}.")
        self.chosen = name

    def get_backend(self) -> str:
        return "pure" if self.chosen == "auto" else self.chosen

    def active_module(self):
        """The registered module that is chosen; None: vecina."""
        return self.modules.get(self.get_backend())


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
