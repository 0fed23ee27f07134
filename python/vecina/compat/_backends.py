# SPDX-License-Identifier: MIT
"""NATTEN's backends by name. vecina takes every name, records it and runs its own backend."""

from __future__ import annotations

import vecina


def _usable(backend: str) -> bool:
    return backend in vecina.backends() and not vecina.why_not(backend)


#: NATTEN's sign of kernels for CUDA: here, that vecina's backend for CUDA is usable.
HAS_LIBNATTEN: bool = _usable("cuda")

FNA = ("blackwell-fna", "hopper-fna", "cutlass-fna", "flex-fna")
FMHA = ("blackwell-fmha", "hopper-fmha", "cutlass-fmha", "flex-fmha")
#: Names with a tile size to list; the others are taken, and have none.
_LISTED = ("cutlass", "flex")
_TILES = {1: ((64,), (64,)), 2: ((8, 8), (8, 8)), 3: ((4, 4, 4), (4, 4, 4))}


def check(backend, known) -> None:
    if backend is not None and backend not in known:
        raise NotImplementedError(f"backend {backend!r} is none of {', '.join(known)}.")


def get_compatible_backends(query, key, value, torch_compile=False) -> list[str]:
    return [name for name in FNA if name.startswith(_LISTED)]


def get_compatible_fmha_backends(
    query, key, value, is_causal=False, is_varlen=False, torch_compile=False
) -> list[str]:
    return [name for name in FMHA if name.startswith(_LISTED)]


def choose_backend(query, key, value, torch_compile=False) -> str:
    return get_compatible_backends(query, key, value)[0]


def choose_fmha_backend(
    query, key, value, is_causal=False, is_varlen=False, torch_compile=False
) -> str:
    return get_compatible_fmha_backends(query, key, value)[0]


def _lister(function: str):
    kind = function.split("_configs_for_")[1]
    is_listed = kind in ("cutlass_fna", "cutlass_fmha", "flex_fna", "flex_fmha")

    def configs(query, key, value, *args, **keywords) -> list[tuple]:
        if not is_listed:
            return []
        return [(64, 64)] if kind.endswith("fmha") else [_TILES[query.dim() - 3]]

    configs.__name__ = configs.__qualname__ = function
    configs.__doc__ = (
        "(query tile, key tile) to choose from: NATTEN's default, as vecina cuts tiles itself."
        if is_listed
        else "Empty: vecina has one choice only, that of the other lists."
    )
    return configs


def _all_configs(tensor, *args, **keywords) -> list[tuple]:
    """(query tile, key tile) to choose from, of [batch, tokens..., heads, head_dim]."""
    return [_TILES[tensor.dim() - 3]]


get_all_forward_configs = get_all_backward_configs = _all_configs
FLEX_FORWARD_TILE_SHAPES = {rank: [tiles] for rank, tiles in _TILES.items()}


def get_all_fmha_forward_configs(tensor, *args, **keywords) -> list[tuple]:
    """(queries, keys) of a tile to choose from."""
    return [(64, 64)]


get_all_fmha_backward_configs = get_all_fmha_forward_configs


def _runner(function: str):
    def can_run(query, key, value, *args, **keywords) -> bool:
        return not any(arch in function for arch in ("hopper", "blackwell"))

    can_run.__name__ = can_run.__qualname__ = function
    can_run.__doc__ = "True for the backends that get_compatible_backends() lists."
    return can_run


for _function in (
    *(f"can_run_cutlass{_arch}_{_op}" for _arch in ("", "_hopper", "_blackwell")
      for _op in ("fna", "fmha")),
    "can_run_flex_attention",
):  # fmt: skip
    globals()[_function] = _runner(_function)

for _kind in ("cutlass", "cutlass_hopper", "cutlass_blackwell", "flex"):
    for _op in ("fna", "fmha"):
        for _way in ("", "bwd_"):
            _function = f"get_{_way}configs_for_{_kind}_{_op}"
            globals()[_function] = _lister(_function)
