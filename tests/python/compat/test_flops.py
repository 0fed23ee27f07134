# SPDX-License-Identifier: MIT
"""natten.flops, by hand, of a trace and through fvcore."""

import importlib.util
import warnings

import pytest

torch = pytest.importorskip("torch")

from inputs import qkv, randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


def test_flops_of_a_trace():
    from vecina.compat import _flops

    flops = vecina.compat.for_version("0.17.5").flops
    query, key, value = qkv(1, 6, 8, 2, 4)

    def call(query, key, value):
        window = ((5, 3), 1, (1, 2), (True, False))
        weights = vt.qk(query, key, *window)
        return vt.na2d(query, key, value, *window), vt.av(weights, value, *window)

    class Traced(torch.nn.Module):
        forward = staticmethod(call)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, _ = torch.jit._get_trace_graph(Traced(), (query, key, value))
    shape, window = tuple(query.shape), ((5, 3), (1, 2), (True, False))
    half = 48 * 2 * 15 * 4  # tokens x heads x window x head_dim
    counts = dict(forward=2 * half, qk=half, av=half)
    found = {
        node.kind(): _flops._HANDLES[node.kind()](list(node.inputs()), list(node.outputs()))
        for node in graph.nodes()
        if node.kind() in _flops._HANDLES
    }
    assert found == {f"vecina::{name}": count for name, count in counts.items()}
    assert flops.na_qk_flop_count(shape, shape, *window, True, return_macs=True) == half
    assert flops.na_av_flop_count(shape[:-1] + (15,), shape, *window, True) == 2 * half
    assert flops.fna_flop_count(shape, shape, shape, *window, True) == 4 * half
    with pytest.raises(ValueError, match="one shape"):
        flops.fna_flop_count(shape, shape, shape[1:], *window, True)


@pytest.mark.skipif(importlib.util.find_spec("fvcore") is None, reason="needs fvcore")
def test_flops_by_fvcore():
    vecina.compat.install("natten", "0.17.5")
    from natten import NeighborhoodAttention2D
    from natten.flops import get_flops

    tokens, dim, window = 6 * 8, 8, 5 * 3
    layer = NeighborhoodAttention2D(dim, 2, (5, 3), (1, 2))
    wanted = tokens * dim * (3 * dim + dim) + 2 * tokens * dim * window
    assert get_flops(layer, randn(1, 6, 8, dim), disable_warnings=True) == wanted
