# SPDX-License-Identifier: MIT
"""Makes the modules of a release from ``_table``."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import sys
import types

from vecina.compat import _operations, _table


def _define(name: str, arguments: str, run):
    """A function of this name and these arguments that calls run(name=value, ...).

    Made from text, as collections.namedtuple does, so that its signature and its TypeErrors are
    those of a function written by hand, and torch.compile sees no more than one.
    """
    head = f"def {name}({arguments}):\n    "
    parsed = ast.parse(f"{head}pass").body[0].args
    passed = ", ".join(f"{arg.arg}={arg.arg}" for arg in [*parsed.args, *parsed.kwonlyargs])
    code = compile(f"{head}return _run({passed})", "<compat>", "exec")
    scope = {"_run": run}
    exec(code, scope)
    return scope[name]


def _function(row: _table.Function, rank: int, front):
    implementation = getattr(_operations, row.run)
    name = row.name.format(rank=rank)
    function = _define(name, row.arguments, functools.partial(implementation, front, rank))
    function.__doc__ = implementation.__doc__ or f"{name} of {', '.join(row.releases)}."
    return function


def _class(row: _table.Module, rank: int):
    from vecina import torch as vt
    from vecina.compat import _modules

    name = f"NeighborhoodAttention{rank}D"
    bases = (getattr(_modules, row.base), getattr(vt, name))
    made = type(name, bases, {"__doc__": f"{name} of {', '.join(row.releases)}."})

    def run(self, **given):
        super(made, self).__init__(**{row.renamed.get(k, k): v for k, v in given.items()})

    made.__init__ = _define("__init__", f"self, {row.arguments}", run)
    return made


def _public(module: types.ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name != "annotations"
    ]


class _Tree:
    """The modules of a release, by path below its top (the empty path)."""

    def __init__(self, top: types.ModuleType):
        self.modules = {"": top}

    def at(self, path: str) -> types.ModuleType:
        if path not in self.modules:
            parent, _, leaf = path.rpartition(".")
            module = types.ModuleType(f"{self.modules[''].__name__}.{path}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            module.__path__ = []
            self.put(path, module)
        return self.modules[path]

    def put(self, path: str, module: types.ModuleType) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(self.at(parent), leaf, module)
        self.modules[path] = module


def fill(name: str, release: str) -> None:
    """Fills the module called name, and makes its submodules, as release had them."""
    is_mlx = release == "natten_mlx"
    front = importlib.import_module("vecina.compat._port_arrays" if is_mlx else "vecina.torch")
    tree = _Tree(sys.modules[name])
    for path, (support, names) in _table.SUPPORT.get(release, {}).items():
        real = importlib.import_module(f"vecina.compat.{support}")
        if names is _table.ITSELF:
            tree.put(path, real)
            continue
        for each in _public(real) if names is None else names:
            setattr(tree.at(path), each, getattr(real, each))
    for row in _table.FUNCTIONS:
        if release in row.releases:
            for rank in row.ranks:
                function = _function(row, rank, front)
                function.__module__ = tree.at(row.module).__name__
                setattr(tree.at(row.module), function.__name__, function)
    place = _table.MODULE_PLACES.get(release)
    for row in _table.MODULES:
        if release in row.releases:
            for rank in row.ranks:
                made = _class(row, rank)
                home = tree.at(place.format(rank=rank)) if place else tree.at("")
                made.__module__ = home.__name__
                setattr(home, made.__name__, made)
                setattr(tree.at(""), made.__name__, made)
    for path in _table.SHOWN[release]:
        for each in _public(tree.at(path)):
            setattr(tree.at(""), each, getattr(tree.at(path), each))
    for path, module in tree.modules.items():
        if path:
            sys.modules[f"{name}.{path}"] = module


def fill_port_compat(name: str) -> None:
    """The ports' own compat below the module called name: for_version and a module each."""
    compat = types.ModuleType(f"{name}.compat")
    compat.__path__ = []
    setattr(sys.modules[name], "compat", compat)
    sys.modules[compat.__name__] = compat
    for version, release in (
        ("v014", "ports_v014"), ("v015", "ports_v017"), ("v017", "ports_v017"),
        ("v020", "ports_v020"),
    ):  # fmt: skip
        module = types.ModuleType(f"{compat.__name__}.{version}")
        sys.modules[module.__name__] = module
        fill(module.__name__, release)
        setattr(compat, version, module)

    def for_version(version_string: str):
        from vecina.compat import _release

        found = _release(version_string)
        return getattr(compat, {"natten": "v020", "v015": "v017"}.get(found, found))

    compat.for_version = for_version


def submodules(name: str) -> dict[str, types.ModuleType]:
    """path -> module of all that fill(name, ...) made."""
    return {
        key[len(name) + 1 :]: module
        for key, module in sys.modules.items()
        if key.startswith(f"{name}.")
    }
