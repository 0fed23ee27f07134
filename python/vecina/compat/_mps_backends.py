# SPDX-License-Identifier: MIT
"""The backends of natten-mps: one that is not there is refused."""

from __future__ import annotations

from vecina.compat import _port_backends

_FUNCTIONS = (
    *(f"na{rank}d_forward" for rank in (1, 2, 3)),
    *(f"na{rank}d_{half}_forward" for rank in (1, 2, 3) for half in ("qk", "av")),
)
_choice = _port_backends.Choice("pure", "metal")
get_backend, active_module = _choice.get_backend, _choice.active_module


def register_backend(name: str, module) -> None:
    """Makes a module with na{1,2,3}d_forward, _qk_forward and _av_forward a choice."""
    for function in _FUNCTIONS:
        if not hasattr(module, function):
            raise ValueError(f"backend {name!r} has no function {function}.")
    _choice.register_backend(name, module)


def _is_available(name: str) -> bool:
    module = _choice.modules.get(name)
    if module is None:
        return name != "metal"
    return bool(getattr(module, "is_available", lambda: True)())


def set_backend(name: str) -> None:
    """ValueError for an unknown name, NotImplementedError for one that is not available."""
    if not _is_available(name):
        raise NotImplementedError(f"backend {name!r} is not available here; use pure or auto.")
    _choice.set_backend(name)
