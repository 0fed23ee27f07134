# SPDX-License-Identifier: MIT
"""Backends as natten-mps and natten-mlx choose them: by name, for the process.

"pure" and "auto" are vecina's backend for the tensors' device; the ports' Metal backends are not
there. A module of the ports' own plug-in form (register_backend) is called instead when chosen.
"""

from __future__ import annotations

import os

_FUNCTIONS = (
    *(f"na{rank}d_forward" for rank in (1, 2, 3)),
    *(f"na{rank}d_{half}_forward" for rank in (1, 2, 3) for half in ("qk", "av")),
)
_registered: dict = {"pure": None, "metal": None, "fast_metal": None, "nanobind": None}
_AVAILABLE = {"pure": True, "metal": False, "fast_metal": False, "nanobind": False}
_chosen = os.environ.get("NATTEN_BACKEND", "auto")
if _chosen not in _registered:
    _chosen = "auto"


def register_backend(name: str, module) -> None:
    """Makes a module with na{1,2,3}d_forward, _qk_forward and _av_forward a choice."""
    for function in _FUNCTIONS:
        if not hasattr(module, function):
            raise ValueError(f"backend {name!r} has no function {function}.")
    _registered[name] = module


def _is_available(name: str) -> bool:
    if _registered[name] is None:
        return _AVAILABLE[name]
    return bool(getattr(_registered[name], "is_available", lambda: True)())


def set_backend(name: str) -> None:
    """ValueError for an unknown name, NotImplementedError for one that is not available."""
    global _chosen
    if name != "auto" and name not in _registered:
        raise ValueError(f"backend {name!r} is none of auto, {', '.join(_registered)}.")
    if name != "auto" and not _is_available(name):
        raise NotImplementedError(f"backend {name!r} is not available here; use pure or auto.")
    _chosen = name


def get_backend() -> str:
    return "pure" if _chosen == "auto" else _chosen


def active_module():
    """The registered module that is chosen; None: vecina."""
    return _registered.get(get_backend())


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
