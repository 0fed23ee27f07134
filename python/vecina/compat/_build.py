# SPDX-License-Identifier: MIT
"""Makes the modules of a release from ``_table``."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import sys
import types

from vecina.compat import _operations, _port_operations, _table


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
    implementation = getattr(_operations, row.run, None) or getattr(_port_operations, row.run)
    name = row.name.format(rank=rank)
    function = _define(name, row.arguments, functools.partial(implementation, front, rank))
    function.__doc__ = implementation.__doc__ or f"{name} of {', '.join(row.releases)}."
    return function


def _is_mlx(release: str) -> bool:
    return "mlx" in release


def _layers_of(release: str) -> types.ModuleType | None:
    """Whose modules a release's are made of; None if MLX is not here, which NumPy does without."""
    if not _is_mlx(release):
        return importlib.import_module("vecina.torch")
    try:
        return importlib.import_module("vecina.mlx")
    except ImportError:
        return None


def _class(row: _table.Module, rank: int, layers: types.ModuleType | None):
    from vecina.compat import _modules

    name = f"NeighborhoodAttention{rank}D"
    if layers is None:

        def refuse(*args, **keywords):
            importlib.import_module("vecina.mlx")  # its ImportError says what to install

        refuse.__name__ = name
        return refuse
    bases = (getattr(_modules, row.base), getattr(layers, name))
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


def _refuser(path: str):
    def refuse(name: str):
        raise AttributeError(
            f"{path}.{name}: this module holds what belongs to the release's own kernels; vecina "
            "has nothing of the kind."
        )

    return refuse


def fill(name: str, release: str) -> None:
    """Fills the module called name, and makes its submodules, as release had them."""
    is_mlx = _is_mlx(release)
    front = importlib.import_module("vecina.compat._port_arrays" if is_mlx else "vecina.torch")
    layers = _layers_of(release)
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
                made = _class(row, rank, layers)
                home = tree.at(place.format(rank=rank)) if place else tree.at("")
                made.__module__ = home.__name__
                setattr(home, made.__name__, made)
                setattr(tree.at(""), made.__name__, made)
    for path, (sources, names) in _table.AGAIN.get(release, {}).items():
        for source in map(tree.at, sources.split()):
            for each in _public(source) if names is None else names:
                setattr(tree.at(path), each, getattr(source, each))
    for path in _table.INTERNALS.get(release, ()):
        tree.at(path).__getattr__ = _refuser(path)
    if release in _table.VERSIONS:
        tree.at("").__version__ = tree.at("version").__version__ = _table.VERSIONS[release]
    for path in _table.SHOWN[release]:
        for each in _public(tree.at(path)):
            setattr(tree.at(""), each, getattr(tree.at(path), each))
    for path, module in tree.modules.items():
        if path:
            sys.modules[f"{name}.{path}"] = module


def fill_port_compat(name: str, port: str, versions: dict[str, str], first: dict) -> None:
    """A port's own compat below the module called name: for_version and a module each.

    versions: module -> release of the table; first: version -> the module from it on.
    """
    compat = types.ModuleType(f"{name}.compat")
    compat.__path__ = []
    setattr(sys.modules[name], "compat", compat)
    sys.modules[compat.__name__] = compat
    for version, release in versions.items():
        module = types.ModuleType(f"{compat.__name__}.{version}")
        sys.modules[module.__name__] = module
        fill(module.__name__, f"{port}_{release}")
        setattr(compat, version, module)

    def for_version(version_string: str):
        from vecina.compat import version_of

        at = version_of(version_string)
        return getattr(compat, first[max(v for v in first if v <= at)])

    compat.for_version = for_version


def submodules(name: str) -> dict[str, types.ModuleType]:
    """path -> module of all that fill(name, ...) made."""
    return {
        key[len(name) + 1 :]: module
        for key, module in sys.modules.items()
        if key.startswith(f"{name}.")
    }
