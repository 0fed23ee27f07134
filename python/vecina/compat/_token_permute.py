# SPDX-License-Identifier: MIT
"""NATTEN's order of tokens by tiles. vecina's kernels need none; whoever used it alone still can.

An axis is split as token = (tile * tile_shape + place) * dilation + group. All groups come first,
then all tiles, then the places, each over the axes in order, or in reverse with flip_tiled_dims.
The other four functions are those of 0.20.0 to 0.21.1, where the groups lie with the heads.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import pad


def _axes(rank: int, tile_shape, dilation, flip_tiled_dims: bool):
    """(tile_shape, dilation, order of the axes), each with a value for each axis."""
    dilation = tuple(dilation or (1,) * rank)
    for name, values in (("tile_shape", tile_shape), ("dilation", dilation)):
        if len(values) != rank or min(values) < 1:
            raise ValueError(f"{name} is {values!r}; {rank} numbers of 1 or more are needed.")
    order = range(rank)
    return tuple(tile_shape), dilation, list(reversed(order) if flip_tiled_dims else order)


def _tiles(layout, tile_shape, dilation) -> list[int]:
    return [-(-n // (t * d)) for n, t, d in zip(layout, tile_shape, dilation)]


def _rank_of(tensor: Tensor) -> int:
    if tensor.ndim not in (4, 5, 6):
        raise ValueError(f"tensor has {tensor.ndim} dimensions; 4, 5 or 6 are needed.")
    return tensor.ndim - 3


def maybe_pad(tensor: Tensor, tile_shape, dilation=None):
    """(tensor with zeros up to whole tiles, how many along each axis)."""
    tile_shape, dilation, _ = _axes(_rank_of(tensor), tile_shape, dilation, False)
    layout = tensor.shape[1:-2]
    tiles = _tiles(layout, tile_shape, dilation)
    missing = tuple(r * t * d - n for r, t, d, n in zip(tiles, tile_shape, dilation, layout))
    return pad(tensor, [0, 0, 0, 0, *(n for m in reversed(missing) for n in (0, m))]), missing


def maybe_unpad(tensor: Tensor, padding) -> Tensor:
    """tensor without the padding at the end of each axis."""
    if len(padding) != _rank_of(tensor):
        raise ValueError(f"padding is {padding!r}; {tensor.ndim - 3} numbers are needed.")
    kept = (slice(n - m) for n, m in zip(tensor.shape[1:-2], padding))
    return tensor[(slice(None), *kept)].contiguous()


def token_permute_operation(
    tensor: Tensor, tile_shape, dilation=None, flip_tiled_dims: bool = True, use_torch: bool = True
):
    """(permuted, extents, padded extents of a dilation group) of [batch, tokens..., heads, dim].

    permuted is [batch * groups, padded tokens of a group, heads, dim]; padding is 0. use_torch is
    taken and changes nothing.
    """
    tile_shape, dilation, order = _axes(_rank_of(tensor), tile_shape, dilation, flip_tiled_dims)
    batch, *layout, heads, dim = tensor.shape
    tiles = _tiles(layout, tile_shape, dilation)
    padded, _ = maybe_pad(tensor, tile_shape, dilation)
    split = [n for axis in zip(tiles, tile_shape, dilation) for n in axis]
    places = [1 + 3 * axis + part for part in (2, 0, 1) for axis in order]
    permuted = padded.reshape(batch, *split, heads, dim).permute(0, *places, -2, -1)
    group = tuple(r * t for r, t in zip(tiles, tile_shape))
    permuted = permuted.reshape(batch * math.prod(dilation), math.prod(group), heads, dim)
    return permuted.contiguous(), tuple(layout), group


def token_unpermute_operation(
    tensor: Tensor, token_layout_shape, tile_shape, dilation=None, flip_tiled_dims: bool = True,
    use_torch: bool = True,
) -> Tensor:  # fmt: skip
    """[batch, tokens..., heads, dim] of what token_permute_operation() made; padding is dropped."""
    rank = len(token_layout_shape)
    if tensor.ndim != 4:
        raise ValueError(f"tensor has {tensor.ndim} dimensions; 4 are needed.")
    tile_shape, dilation, order = _axes(rank, tile_shape, dilation, flip_tiled_dims)
    tiles = _tiles(token_layout_shape, tile_shape, dilation)
    groups, tokens = math.prod(dilation), math.prod(tiles) * math.prod(tile_shape)
    if tensor.shape[0] % groups or tensor.shape[1] != tokens:
        raise ValueError(
            f"tensor is {tuple(tensor.shape)}; a multiple of {groups} groups, with {tokens} tokens."
        )
    split = [sizes[axis] for sizes in (dilation, tiles, tile_shape) for axis in order]
    at = {axis: place for place, axis in enumerate(order)}
    places = [1 + part * rank + at[axis] for axis in range(rank) for part in (1, 2, 0)]
    batch = tensor.shape[0] // groups
    whole = tensor.reshape(batch, *split, *tensor.shape[2:]).permute(0, *places, -2, -1)
    padded = [r * t * d for r, t, d in zip(tiles, tile_shape, dilation)]
    whole = whole.reshape(batch, *padded, *tensor.shape[2:])
    return whole[(slice(None), *(slice(n) for n in token_layout_shape))].contiguous()


def token_permute(tensor: Tensor, tile_shape, dilation=None, flip_tiled_dims: bool = True):
    """(permuted, extents of a dilation group, tiles along each axis) of whole tiles.

    permuted is [batch, tokens of a group, groups * heads, dim].
    """
    _, missing = maybe_pad(tensor, tile_shape, dilation)
    if any(missing):
        raise ValueError(
            f"tensor is {tuple(tensor.shape)}; tiles of {tile_shape!r} with dilation {dilation!r} "
            f"leave {missing} tokens: maybe_pad() first."
        )
    permuted, _, group = token_permute_operation(tensor, tile_shape, dilation, flip_tiled_dims)
    batch = tensor.shape[0]
    permuted = permuted.unflatten(0, (batch, len(permuted) // batch)).movedim(1, 2).flatten(2, 3)
    return permuted.contiguous(), group, tuple(n // t for n, t in zip(group, tile_shape))


def token_unpermute(
    tensor: Tensor, tile_shape, orig_shape, rest_shape, dilation=None, flip_tiled_dims: bool = True
) -> Tensor:
    """[batch, tokens..., heads, dim] of what token_permute() gave, with the extents it gave."""
    tile_shape, steps, _ = _axes(len(orig_shape), tile_shape, dilation, flip_tiled_dims)
    if tuple(n * t for n, t in zip(rest_shape, tile_shape)) != tuple(orig_shape):
        raise ValueError(f"{rest_shape!r} tiles of {tile_shape!r} are not {orig_shape!r} tokens.")
    groups = math.prod(steps)
    if tensor.ndim != 4 or tensor.shape[2] % groups:
        raise ValueError(f"tensor is {tuple(tensor.shape)}; {groups} groups of heads are needed.")
    apart = tensor.unflatten(2, (groups, -1)).movedim(2, 1).flatten(0, 1)
    layout = [n * d for n, d in zip(orig_shape, steps)]
    return token_unpermute_operation(apart, layout, tile_shape, steps, flip_tiled_dims)
