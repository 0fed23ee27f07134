# SPDX-License-Identifier: MIT
"""The interfaces of NATTEN, natten-mps and natten-mlx, over vecina.

``vecina.compat.natten`` is today's NATTEN (0.21); ``v020``, ``v017``, ``v015`` and ``v014`` are its
earlier releases; ``natten_mps`` and ``natten_mlx`` are the ports, the last one on arrays of MLX or
NumPy. ``install("natten", version="0.17.5")`` makes ``import natten`` mean one of them, so that
code written for it runs unchanged.

Names, order of arguments, defaults and types of errors are those of the release. Arguments that
tune its kernels are taken and recorded (``recorded()``) and change nothing. ``qk`` and ``av`` are
``vecina.torch.qk`` and ``av``. Each module needs its framework; this one needs none. Submodules
that hold only what belongs to a release's own kernels can be imported, and refuse by name what is
asked of them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
import types

_NATTEN = (((0, 20), "v020"), ((0, 17), "v017"), ((0, 15), "v015"), ((0, 14), "v014"))
_NAMES = ("natten", "natten_mps", "natten_mlx")


def version_of(version: str) -> tuple[int, int]:
    """The first two numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        raise ValueError(f"version is {version!r}; something like '0.17.5' is needed.")
    return int(numbers[1]), int(numbers[2])


def _release(version: str) -> str:
    at = version_of(version)
    if at >= (0, 21):
        return "natten"
    for first, release in _NATTEN:
        if at >= first:
            return release
    raise ValueError(f"NATTEN {version}: not there; 0.14 and later are.")


def for_version(version: str) -> types.ModuleType:
    """The module for a version of NATTEN, "0.14" or later."""
    return importlib.import_module(f"vecina.compat.{_release(version)}")


def install(name: str, version: str | None = None) -> types.ModuleType:
    """Makes ``import name``, with every submodule that is there, mean vecina's. Returns it.

    Args:
        name: "natten", "natten_mps" or "natten_mlx".
        version: of NATTEN, "0.14" or later; None is today's. The ports have one.

    What was imported before under this name is replaced for later imports; names that other
    modules already took from it stay theirs.
    """
    if name not in _NAMES:
        raise ValueError(f"name is {name!r}; natten, natten_mps or natten_mlx is needed.")
    if version is not None and name != "natten":
        raise ValueError(f"{name} has no versions to choose from; leave version out.")
    release = name if name != "natten" or version is None else _release(version)
    module = importlib.import_module(f"vecina.compat.{release}")
    for key in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
        del sys.modules[key]
    top = types.ModuleType(name, module.__doc__)
    public = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    top.__dict__.update(public)
    from vecina.compat import _build, _table

    top.__version__ = version or _table.VERSIONS[name]
    top.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    top.__path__ = []
    sys.modules[name] = top
    for path, submodule in _build.submodules(module.__name__).items():
        sys.modules[f"{name}.{path}"] = submodule
    if f"{name}.version" in sys.modules:
        top.version = types.ModuleType(f"{name}.version")
        top.version.__version__ = top.__version__
        sys.modules[f"{name}.version"] = top.version
    return top


def recorded() -> dict[str, dict]:
    """Tuning arguments that the last call of each function was given, by its name."""
    from vecina.compat import _operations

    return _operations.recorded()


__all__ = ["for_version", "install", "recorded"]
