# SPDX-License-Identifier: MIT
"""natten_mps and natten_mlx: functions, backends, the environment."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inputs import qkv, randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


def test_natten_mps():
    port = vecina.compat.install("natten_mps")
    query, key, value = qkv(2, 9, 2, 4)
    got = port.na1d(query, key, value, 3, 2, 1, True, None, True)
    wanted = vt.na1d(query, key, value, 3, is_causal=True, output_stride=2, return_lse=True)
    for mine, his in zip(got, wanted):
        torch.testing.assert_close(mine, his, rtol=0, atol=0)
    logits = port.na1d_qk(query, key, 3, stride=2, is_causal=True)  # no scale by default
    assert torch.isinf(logits[:, 0, :, :2]).all() and torch.isfinite(logits[:, 0, :, 2]).all()
    output = port.na1d_av((logits / 2).softmax(-1), value, 3, stride=2, is_causal=True)
    torch.testing.assert_close(output, wanted[0])
    sizes = torch.tensor([9, 5])
    varlen = port.na1d_varlen(query, key, value, sizes, 3)
    assert not varlen[1, 5:].any()
    alone = vt.na1d(*(t[1:, :5] for t in (query, key, value)), 3)
    torch.testing.assert_close(varlen[1:, :5], alone)
    with pytest.raises(ValueError, match="seq_lens holds"):
        port.na1d_varlen(query, key, value, torch.tensor([9, 2]), 3)
    layer = port.nn.NeighborhoodAttention1D(8, 2, 3, stride=2, num_kv_heads=1)
    assert layer(randn(1, 9, 8)).shape == (1, 5, 8) and "kv_proj.weight" in layer.state_dict()
    same = port.NeighborhoodAttention1D(8, 2, 3).eval()
    x = randn(2, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(same(x, sizes)[1:, :5], same(x[1:, :5]))
    rpb = randn(2, 5)
    fused = port.extras.allin1.na1d_qk_rpb(query, key, rpb, 3, scale=0.5)
    torch.testing.assert_close(fused, vt.qk(query, key, 3, scale=0.5, bias=rpb))
    from natten_mps.utils.window import get_pb_start, get_window_end, get_window_start

    assert [get_window_start(i, 7, 3, 2) for i in range(7)] == [0, 1, 0, 1, 2, 1, 2]
    assert [get_window_start(i, 10, 7, 2) for i in (1, 5, 9)] == [1, 1, -3]  # does not fit
    assert get_window_end(6, 7, 3, 2) == 6 and get_pb_start(6, 7, 3, 2) == 0
    old = port.compat.for_version("0.14.6")
    assert old.NeighborhoodAttention2D(dim=8, kernel_size=3, num_heads=2).num_heads == 2


def test_merging_with_lse_of_half_logits():
    port = importlib.import_module("vecina.compat.natten_mps")
    outputs = [t.half() for t in qkv(2, 9, 2, 4)[:2]]
    lses = [t.half().requires_grad_() for t in qkv(2, 9, 2)[:2]]
    merged, lse = port.merge_attentions(outputs, lses)
    wanted = vt.merge_attentions(outputs, [t.float() for t in lses])
    torch.testing.assert_close((merged, lse), wanted, rtol=0, atol=0)
    assert all(g.dtype == torch.float16 for g in torch.autograd.grad(lse.sum(), lses))


def test_backends_of_natten_mps():
    port = vecina.compat.install("natten_mps")
    assert port.get_backend() == "pure" and not port.has_metal()
    with pytest.raises(ValueError, match="'nonesuch'"):
        port.set_backend("nonesuch")
    with pytest.raises(NotImplementedError, match="'metal'"):
        port.set_backend("metal")
    from natten_mps._core import metal, ops

    assert not metal.is_available()
    with pytest.raises(ValueError, match="no function na1d_forward"):
        ops.register_backend("mine", ops)

    class Mine:
        """A plug-in; only the fused 1-D call is used here."""

    for name in ops._FUNCTIONS:
        setattr(Mine, name, None)
    Mine.na1d_forward = staticmethod(lambda q, k, v, *rest: (q, *rest))
    ops.register_backend("mine", Mine)
    try:
        port.set_backend("mine")
        query, key, value = qkv(1, 8, 2, 4)
        assert port.na1d(query, key, value, 3)[1:] == ((3,), (1,), (1,), (False,), 0.5)
    finally:
        port.set_backend("auto")
        del ops._choice.modules["mine"]
    assert set(port.get_support_matrix()) == {"pure", "metal"}


@pytest.mark.parametrize("name", ["pure", "fast_metal", "nanobind"])
def test_backends_of_natten_mlx(name):
    """All of them can be chosen, as there, and are vecina's; natten-mps' choice is its own."""
    port = vecina.compat.install("natten_mlx")
    other = vecina.compat.install("natten_mps")
    query, key, value = (t.numpy() for t in qkv(1, 9, 2, 4))
    wanted = port.na1d(query, key, value, 3)
    try:
        port.set_backend(name)
        assert port.get_backend() == name and other.get_backend() == "pure"
        np.testing.assert_array_equal(port.na1d(query, key, value, 3), wanted)
    finally:
        port.set_backend("auto")
    assert port.get_backend() == "pure" and not port.has_metal() and not port.has_nanobind()
    with pytest.raises(ValueError, match="'metal' is none of auto, pure, fast_metal, nanobind"):
        port.set_backend("metal")
    from natten_mlx._core import fast_metal, nanobind

    assert not fast_metal.is_available() and not nanobind.is_available()


@pytest.mark.parametrize(
    "port, given, chosen",
    [
        ("natten_mps", "metal", "metal"),
        ("natten_mps", "pure", "pure"),
        ("natten_mps", "fast_metal", "pure"),  # natten-mlx's
        ("natten_mlx", "fast_metal", "fast_metal"),
        ("natten_mlx", "no", "pure"),
    ],
)
def test_the_environment_names_a_backend_of_the_ports(port, given, chosen):
    code = (
        f"import vecina.compat; vecina.compat.install('{port}'); import {port}; "
        f"print({port}.get_backend())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "NATTEN_BACKEND": given},
    )  # fmt: skip
    assert found.stdout.split() == [chosen]


def test_natten_mlx_on_arrays():
    port = importlib.import_module("vecina.compat.natten_mlx")
    query, key, value = (t.numpy() for t in qkv(1, 9, 2, 4))
    output, lse = port.na1d(query, key, value, 3, stride=2, return_lse=True)
    logits = port.na1d_qk(query, key, 3, stride=2)  # scaled by default
    np.testing.assert_allclose(np.log(np.exp(logits).sum(-1)), lse, atol=1e-5)
    weights = np.exp(logits - lse[..., None])
    np.testing.assert_allclose(port.na1d_av(weights, value, 3, stride=2), output, atol=1e-5)
    varlen = port.na1d_varlen(query, key, value, np.array([5]), 3)
    assert not varlen[:, 5:].any() and varlen[:, :5].any()
    assert set(port.get_support_matrix()) == {"pure", "fast_metal", "nanobind"}
