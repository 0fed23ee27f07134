# SPDX-License-Identifier: MIT
"""NATTEN's token permutation, token by token."""

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

import vecina.compat  # noqa: E402


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "layout, tile, dilation",
    [((7,), (2,), (3,)), ((5, 6), (2, 3), (2, 1)), ((3, 4, 5), (2,) * 3, None)],
)
def test_token_permutation(layout, tile, dilation, flip):
    from vecina.compat import natten

    permute = natten.token_permute.token_permute_operation
    unpermute = natten.token_permute.token_unpermute_operation
    tensor = torch.randn(2, *layout, 2, 3)
    permuted, given, group = permute(tensor, tile, dilation, flip)
    assert given == layout and permuted.shape[1] == math.prod(group)
    assert torch.equal(unpermute(permuted, layout, tile, dilation, flip), tensor)
    # Token by token: where each must have come to.
    steps = dilation or (1,) * len(layout)
    order = range(len(layout))[:: -1 if flip else 1]

    def rank_in(places, sizes):  # row-major over the axes in their order
        number = 0
        for axis in order:
            number = number * sizes[axis] + places[axis]
        return number

    tiles = [g // t for g, t in zip(group, tile)]
    for token in itertools.product(*map(range, layout)):
        groups = [n % d for n, d in zip(token, steps)]
        inner = [n // d for n, d in zip(token, steps)]
        at = rank_in([n // t for n, t in zip(inner, tile)], tiles) * math.prod(tile)
        at += rank_in([n % t for n, t in zip(inner, tile)], tile)
        row = math.prod(steps) + rank_in(groups, steps)  # of the second batch
        assert torch.equal(permuted[row, at], tensor[(1, *token)])
    # As 0.20 had it: the groups with the heads.
    old = vecina.compat.for_version("0.20.1").token_permute
    padded, padding = old.maybe_pad(tensor, tile, dilation)
    together, shape, rest = old.token_permute(padded, tile, dilation, flip)
    groups = math.prod(steps)
    apart = together.unflatten(2, (groups, 2)).movedim(2, 1).flatten(0, 1)
    assert shape == group and torch.equal(apart, permuted)
    whole = old.token_unpermute(together, tile, shape, rest, dilation, flip)
    assert torch.equal(old.maybe_unpad(whole, padding), tensor)
    with pytest.raises(ValueError, match="maybe_pad"):
        old.token_permute(padded[:, 1:], tile, dilation, flip)
    with pytest.raises(ValueError, match="tiles of"):
        old.token_unpermute(together, tile, shape, [n + 1 for n in rest], dilation, flip)
    with pytest.raises(ValueError, match="dimensions"):
        permute(tensor[0, 0, 0], tile)
    with pytest.raises(ValueError, match="tile_shape"):
        permute(tensor, (*tile, 2))
    with pytest.raises(ValueError, match="groups"):
        unpermute(permuted[:, 1:], layout, tile, dilation, flip)
