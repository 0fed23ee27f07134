# SPDX-License-Identifier: MIT
"""NATTEN's packed sequences and the ports' padded samples."""

import importlib

import pytest

torch = pytest.importorskip("torch")

from inputs import qkv, randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


def test_attention_and_packed_sequences():
    natten = vecina.compat.for_version("0.21")
    query, key, value = randn(1, 9, 2, 4), *qkv(1, 12, 2, 4)[:2]
    lengths = [torch.tensor(n, dtype=torch.int32) for n in ([4, 5], [7, 5])]
    whole, lse = natten.attention(
        query, key, value, is_causal=True, seqlens_Q=lengths[0], seqlens_KV=lengths[1],
        return_lse=True,
    )  # fmt: skip
    first = vt.attention(query[:, :4], key[:, :7], value[:, :7], True, return_lse=True)
    torch.testing.assert_close(whole[:, :4], first[0], rtol=0, atol=0)
    torch.testing.assert_close(lse[:, :4], first[1], rtol=0, atol=0)
    sums = importlib.import_module("vecina.compat.natten.utils.varlen").generate_varlen_parameters(
        query, key, value, *lengths
    )
    assert sums[0].tolist() == [0, 4, 9] and sums[1].tolist() == [0, 7, 12] and sums[2:] == (5, 7)
    names = [f"{what}_{side}" for what in ("cumulative_seqlen", "max_seqlen") for side in ("Q", "KV")]
    packed = dict(zip(names, sums))
    torch.testing.assert_close(natten.attention(query, key, value, True, **packed), whole)
    with pytest.raises(ValueError, match="belong together"):
        natten.attention(query, key, value, seqlens_Q=lengths[0])
    with pytest.raises(ValueError, match="rise from 0 to at most 9"):
        natten.attention(query, key, value, **{**packed, "cumulative_seqlen_Q": sums[1]})
    compiled = torch.compile(
        lambda q, k, v, packed: natten.attention(q, k, v, True, **packed), fullgraph=True,
        backend="aot_eager",
    )  # fmt: skip
    torch.testing.assert_close(compiled(query, key, value, packed), whole)
    for name in names:
        message = "belong together" if name.startswith("cumulative") else "max_seqlen_Q and _KV are"
        with pytest.raises(ValueError, match=message):
            natten.attention(query, key, value, **{**packed, name: None})
        with pytest.raises(Exception, match=f"ValueError.*{message}"):  # of the compiler
            compiled(query, key, value, {**packed, name: None})
    # Of lengths and sums, the lengths count, compiled or not.
    one = [torch.tensor([n], dtype=torch.int32) for n in (9, 12)]
    both = dict(packed, seqlens_Q=one[0], seqlens_KV=one[1])
    with_breaks = torch.compile(
        lambda given: natten.attention(query, key, value, True, **given), backend="eager"
    )
    for function in (lambda given: natten.attention(query, key, value, True, **given), with_breaks):
        torch.testing.assert_close(function(both), vt.attention(query, key, value, True))
    # Tokens after the last sequence, and sequences without queries or keys.
    bounds = [0, 4, 4, 6, 8], [0, 3, 5, 5, 9]
    sums = [torch.tensor(b, dtype=torch.int32) for b in bounds]
    packed = dict(zip(names, (*sums, 4, 4)))
    query.requires_grad_()
    output, lse = natten.attention(query, key, value, return_lse=True, **packed)
    for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:]):
        if a < b and c < d:
            alone = vt.attention(query[:, a:b], key[:, c:d], value[:, c:d])
            torch.testing.assert_close(output[:, a:b], alone)
    blank = [4, 5, 8]
    assert not output[:, blank].any() and torch.isneginf(lse[:, blank]).all()
    assert torch.isfinite(lse[:, [0, 1, 2, 3, 6, 7]]).all()
    (grad,) = torch.autograd.grad(output.sum(), query)
    assert not grad[:, blank].any() and grad[:, :4].any()
    nothing = dict(zip(names, (*(s * 0 for s in sums), 0, 0)))
    assert not natten.attention(query, key, value, **nothing).any()
    no_keys = {**packed, "cumulative_seqlen_KV": sums[1] * 0, "max_seqlen_KV": 0, "max_seqlen_Q": 0}
    assert not natten.attention(query, key[:, :0], value[:, :0], **no_keys).any()
    query = query.detach()
    parts = [natten.attention(query, part, part, return_lse=True) for part in (key, value)]
    merged = natten.merge_attentions(*zip(*parts))
    torch.testing.assert_close(merged, vt.merge_attentions(*map(list, zip(*parts))))
    leaves = [[t.detach().requires_grad_() for t in some] for some in zip(*parts)]
    found = natten.merge_attentions(*leaves)
    torch.testing.assert_close(found, merged)
    (found[0].square().sum() + found[1].sum()).backward()
    again = [[t.detach().clone().requires_grad_() for t in some] for some in leaves]
    wanted = vt.merge_attentions(*again, backend="reference")
    (wanted[0].square().sum() + wanted[1].sum()).backward()
    for mine, his in zip(leaves[0] + leaves[1], again[0] + again[1]):
        torch.testing.assert_close(mine.grad, his.grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="two or more"):
        natten.merge_attentions([whole], [lse])


def test_packed_sequences_whose_lengths_cannot_be_looked_at(monkeypatch):
    from vecina.compat import _operations

    natten = vecina.compat.for_version("0.21")
    query, key, value = qkv(1, 9, 2, 4)
    sums = torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = dict(
        cumulative_seqlen_Q=sums, cumulative_seqlen_KV=sums, max_seqlen_Q=5, max_seqlen_KV=5
    )
    wanted = natten.attention(query, key, value, return_lse=True, **packed)
    monkeypatch.setattr(_operations, "_is_capturing", lambda tensor: True)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    found = natten.attention(query, key, value, return_lse=True, **packed)
    with pytest.raises(ValueError, match="a CUDA graph cannot hold; give cumulative_seqlen_Q"):
        natten.attention(query, key, value, seqlens_Q=sums.diff(), seqlens_KV=sums.diff())
    monkeypatch.undo()
    torch.testing.assert_close(found, wanted)


def test_samples_on_a_device_are_one_call(monkeypatch):
    """With tensors of a device that have no memory: no GPU is needed to count."""
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from vecina.compat import _operations

    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), keywords=None):
            if function.namespace == "vecina":
                self.names.append(function.__name__)
            return function(*args, **(keywords or {}))

        def since(self):
            names, self.names = self.names, []
            return names

    natten = vecina.compat.for_version("0.21")
    port = importlib.import_module("vecina.compat.natten_mps")
    sizes = {1: torch.tensor([9, 5]), 2: torch.tensor([[4, 3], [3, 5]])}
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        for rank, lengths in sizes.items():
            padded = torch.empty(2, *((9,), (4, 5))[rank - 1], 2, 4, device="cuda")
            output = getattr(port, f"na{rank}d_varlen")(padded, padded, padded, lengths, 3)
            assert output.shape == padded.shape and output.is_cuda
            assert calls.since() == ["forward.default"]
        # While a graph is captured the lengths are not looked at.
        monkeypatch.setattr(_operations, "_is_capturing", lambda tensor: tensor.is_cuda)
        query, key = (torch.empty(1, n, 2, 4, device="cuda") for n in (9, 12))
        sums = [torch.empty(3, dtype=torch.int32, device="cuda") for _ in range(2)]
        output, lse = natten.attention(
            query, key, key, cumulative_seqlen_Q=sums[0], cumulative_seqlen_KV=sums[1],
            max_seqlen_Q=5, max_seqlen_KV=7, return_lse=True,
        )  # fmt: skip
        assert output.shape == query.shape and lse.shape == query.shape[:-1]
        assert calls.since() == ["forward.default"]
        output.requires_grad_()
        for merge in (natten.merge_attentions, port.merge_attentions):
            merged, _ = merge([output, output], [lse, lse])
            assert merged.requires_grad and calls.since() == ["merge.default"]
