# SPDX-License-Identifier: MIT
"""The backends of natten-mlx: any of its names can be chosen, as one that is not there is replaced
by another; here they are all vecina's."""

from __future__ import annotations

from vecina.compat import _port_backends

_choice = _port_backends.Choice("pure", "fast_metal", "nanobind")


def register_backend(name: str, module) -> None:
    """Makes a module with na{1,2,3}d_forward what is called when one of the names is chosen."""
    _choice.modules[name] = module


def set_backend(name: str) -> None:
    """ValueError for an unknown name. Whether the backend is available is not asked."""
    _choice.choose(name)


def get_backend() -> str:
    return _choice.name()


def active_module():
    """The registered module that is chosen; None: vecina."""
    return _choice.module()
