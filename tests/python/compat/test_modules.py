# SPDX-License-Identifier: MIT
"""Modules of NATTEN's releases and of natten-mps: training, state dicts that load strictly."""

import importlib
import importlib.util

import pytest

torch = pytest.importorskip("torch")

from inputs import randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


@pytest.mark.parametrize("version", ["0.14.6", "0.15.1", "0.17.5"])
def test_old_modules_train_their_bias(version):
    kind = vecina.compat.for_version(version).NeighborhoodAttention2D
    named = {"rel_pos_bias": True} if version == "0.17.5" else {}
    torch.manual_seed(0)
    module = kind(8, 2, 3, dilation=2, **named)
    keys = {"rpb", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(module.state_dict()) == keys
    assert module.rpb.shape == (2, 5, 5)
    ours = vt.NeighborhoodAttention2D(8, 2, 3, dilation=2, rel_pos_bias=True, backend="reference")
    ours.load_state_dict(module.state_dict())
    x = randn(1, 6, 7, 8)
    for layer in (module, ours):
        layer(x).square().sum().backward()
    for mine, his in zip(ours.parameters(), module.parameters()):
        torch.testing.assert_close(his.grad, mine.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), ours(x))
    if version == "0.17.5":
        with pytest.raises(NotImplementedError, match="rel_pos_bias with is_causal"):
            kind(8, 2, 3, is_causal=True, rel_pos_bias=True)
    else:
        small = x[:, :4]  # padded to the window
        assert module(small).shape == small.shape
        with pytest.raises(AssertionError, match="kernel_size 4"):
            kind(8, 2, 4)


def test_modules_of_today_load_strictly():
    kind = vecina.compat.for_version("0.21").NeighborhoodAttention1D
    module = kind(8, 2, 3, 1, 2, False, False, 0.5, 0.1)
    assert module.scale == 0.5 and module.proj_drop.p == 0.1 and module.qkv.bias is None
    vt.NeighborhoodAttention1D(8, 2, 3, qkv_bias=False).load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match="kernel_size"):
        kind(8, 2, 1)


#: release -> arguments of its module and the shapes of its state dict, as the release has them
STATES = {
    **{f"{version} {rank}d": (
        version, rank, (8, 2, 3), {},
        {"rpb": (2,) + (5,) * rank} if version in ("0.14.6", "0.15.1") else {},
    ) for version, ranks in (("0.14.6", 2), ("0.15.1", 3), ("0.17.5", 3), ("0.20.1", 3),
                             ("0.21.6", 3)) for rank in range(1, ranks + 1)},
    **{f"0.17.5 {rank}d rpb": (
        "0.17.5", rank, (8, 2, 3), {"rel_pos_bias": True}, {"rpb": (2,) + (5,) * rank},
    ) for rank in (1, 2, 3)},
}  # fmt: skip
LINEAR = {"qkv.weight": (24, 8), "qkv.bias": (24,), "proj.weight": (8, 8), "proj.bias": (8,)}


@pytest.mark.parametrize("name", STATES)
def test_state_dicts_of_every_release_load_strictly(name):
    version, rank, arguments, named, more = STATES[name]
    kind = f"NeighborhoodAttention{rank}D"
    state = {key: randn(*shape) for key, shape in {**LINEAR, **more}.items()}
    module = getattr(vecina.compat.for_version(version), kind)(*arguments, **named)
    ours = getattr(vt, kind)(*arguments, rel_pos_bias="rpb" in more)
    x = randn(1, *(6, 5, 4)[:rank], 8)
    outputs = []
    for layer in (module, ours):
        layer.load_state_dict(state)  # strict
        assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {**LINEAR, **more}
        with torch.no_grad():
            outputs.append(layer.eval()(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.skipif(importlib.util.find_spec("natten_mps") is None, reason="needs natten-mps")
@pytest.mark.parametrize("heads_kv", [None, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_state_dicts_of_natten_mps_itself(rank, heads_kv):
    real = importlib.import_module("natten_mps.nn")
    kind = f"NeighborhoodAttention{rank}D"
    theirs = getattr(real, kind)(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    assert not type(theirs).__module__.startswith("vecina")
    ours = getattr(vt, kind)(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    ported = getattr(importlib.import_module("vecina.compat.natten_mps"), kind)
    ported = ported(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    x = randn(2, *(7, 5, 4)[:rank], 16)
    with torch.no_grad():
        wanted = theirs(x)
        for layer in (ours, ported):
            layer.load_state_dict(theirs.state_dict())
            torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
            theirs.load_state_dict(layer.state_dict())
