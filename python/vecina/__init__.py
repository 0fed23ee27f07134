# SPDX-License-Identifier: MIT
"""Neighborhood attention: each query attends to a window of keys around it.

``vecina.torch``, ``vecina.numpy``, ``vecina.mlx`` and ``vecina.jax`` hold the functions; this
module imports no framework.
"""

import json as _json

from vecina import _vecina

__version__: str = _vecina.version()


def backends() -> list[str]:
    """Names of the backends in this build, in order of preference."""
    return _vecina.backends()


def why_not(backend: str, line: str = "") -> str:
    """Why a backend cannot run the forward pass of a problem line here (no line: at all).

    The grammar of problem lines is in docs/concepts.md. Empty if it can.
    """
    return _vecina.why_not(backend, line)


def info() -> dict:
    """Version, backends and machine, as ``vecina info --json`` prints them."""
    return _json.loads(_vecina.info())


def window(line: str, axis: int, index: int) -> tuple[int, int, int]:
    """The keys that query ``index`` of an axis sees: (first, step, count), in tokens."""
    return _vecina.window(line, axis, index)


def set_num_threads(threads: int) -> None:
    """Threads of the next calls, the caller's included; 0 is the default.

    The default is VECINA_NUM_THREADS, else the cores that this process may use.
    """
    _vecina.set_num_threads(threads)


__all__ = ["__version__", "backends", "info", "set_num_threads", "why_not", "window"]
