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
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
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


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata knows of an installed name: who looks for NATTEN asks its version."""

    def __init__(self, name: str, version: str):
        self._texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            "Summary: The interface of a release, over vecina.\n",
            "top_level.txt": f"{name}\n",
        }

    def read_text(self, filename):
        return self._texts.get(filename)

    def locate_file(self, path):
        raise FileNotFoundError(f"{path}: vecina.compat.install() installs no files.")


class _Finder(importlib.metadata.DistributionFinder, importlib.abc.Loader):
    """Finds what install() has put under a name, as long as it is there: its version, and itself
    for importlib.reload()."""

    def __init__(self):
        self.installed: dict[str, tuple[str, str]] = {}  # name -> release, version

    def is_there(self, name: str) -> bool:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        return spec is not None and spec.loader is self

    def find_spec(self, fullname, path=None, target=None):
        return self.spec_of(fullname) if self.is_there(fullname) else None

    def spec_of(self, name: str):
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        _fill(module, *self.installed[module.__name__])

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        if context.path is not sys.path and list(context.path) != sys.path:
            return  # one folder is listed, in which nothing of ours lies
        wanted = None if context.name is None else re.sub(r"[-_.]+", "_", context.name).lower()
        for name in self.installed:
            if wanted in (None, name) and self.is_there(name):
                yield _Distribution(name, self.installed[name][1])


_finder = _Finder()


def install(name: str, version: str | None = None) -> types.ModuleType:
    """Makes ``import name``, with every submodule that is there, mean vecina's. Returns it.

    Args:
        name: "natten", "natten_mps" or "natten_mlx".
        version: of NATTEN, "0.14" or later; None is today's. The ports have one.

    What was imported before under this name is replaced for later imports; names that other
    modules already took from it stay theirs. importlib.metadata knows the name and its version, as
    libraries ask that look for NATTEN.
    """
    if name not in _NAMES:
        raise ValueError(f"name is {name!r}; natten, natten_mps or natten_mlx is needed.")
    if version is not None and name != "natten":
        raise ValueError(f"{name} has no versions to choose from; leave version out.")
    release = name if name != "natten" or version is None else _release(version)
    importlib.import_module(f"vecina.compat.{release}")  # what it needs may not be here
    from vecina.compat import _table

    _finder.installed[name] = release, version or _table.VERSIONS[name]
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for key in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
        del sys.modules[key]
    top = sys.modules[name] = importlib.util.module_from_spec(_finder.spec_of(name))
    _finder.exec_module(top)
    return top


def _fill(top: types.ModuleType, release: str, version: str) -> None:
    name = top.__name__
    module = importlib.import_module(f"vecina.compat.{release}")
    public = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    top.__dict__.update(public)
    from vecina.compat import _build

    top.__doc__, top.__file__ = module.__doc__, module.__file__
    top.__version__ = version
    top.__all__ = [*sorted(_build._public(module)), "__version__"]
    for path, submodule in _build.submodules(module.__name__).items():
        sys.modules[f"{name}.{path}"] = submodule
    if f"{name}.version" in sys.modules:
        top.version = types.ModuleType(f"{name}.version")
        top.version.__version__ = top.__version__
        sys.modules[f"{name}.version"] = top.version


def recorded() -> dict[str, dict]:
    """Tuning arguments that the last call of each function was given, by its name."""
    from vecina.compat import _operations

    return _operations.recorded()


__all__ = ["for_version", "install", "recorded"]
