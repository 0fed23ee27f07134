# SPDX-License-Identifier: MIT
"""Logits and their product with values, heads first, of NATTEN before 0.20."""

import pytest

torch = pytest.importorskip("torch")

from inputs import heads_first, qkv, randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_heads_first_halves(rank):
    tokens = (6, 5, 5)[:rank]
    query, key, value = qkv(2, *tokens, 3, 4, dtype=torch.float64)
    bias = randn(3, *(5,) * rank, dtype=torch.float64)
    wanted = vt.neighborhood_attention(query, key, value, 3, scale=1.0, bias=bias)
    tensors = [heads_first(t) for t in (query, key, value)]
    ways = [("0.17.5", "na{}d_qk", "na{}d_av", (3, 1), dict(rpb=bias))]
    sizes = (3, 3, 1, 1) if rank == 3 else (3, 1)
    ways.append(("0.15.1", "na{}d_qk_with_bias", "na{}d_av", (bias, *sizes), {}))
    for version in ("0.14.6",) * (rank < 3) + ("0.17.0",):
        ways.append((version, "natten{}dqkrpb", "natten{}dav", (bias, *sizes), {}))
    for version, qk, av, arguments, keywords in ways:
        module = vecina.compat.for_version(version).functional
        logits = getattr(module, qk.format(rank))(*tensors[:2], *arguments, **keywords)
        assert logits.shape == (2, 3, *tokens, 3**rank)
        sizes_of_av = [a for a in arguments if not torch.is_tensor(a)]
        output = getattr(module, av.format(rank))(logits.softmax(-1), tensors[2], *sizes_of_av)
        torch.testing.assert_close(output, heads_first(wanted))


def test_halves_with_additional_tokens_and_causality():
    functional = vecina.compat.for_version("0.17.5").functional
    query, key, value = qkv(1, 7, 2, 4)
    keys, values = qkv(1, 3, 2, 4)[:2]
    wanted = vt.na1d(query, key, value, 3, 1, 2, True, 1.0, additional_keys=keys,
                     additional_values=values)  # fmt: skip
    first = [heads_first(t) for t in (query, key, value, keys, values)]
    logits = functional.na1d_qk(*first[:2], 3, 2, first[3], True)
    assert logits.shape[-1] == 6 and torch.isinf(logits[..., 0, 1:3]).all()
    output = functional.na1d_av(logits.softmax(-1), first[2], 3, 2, first[4], True)
    torch.testing.assert_close(output, heads_first(wanted))
    with pytest.raises(RuntimeError, match="must be odd"):
        functional.na1d_qk(*first[:2], 4)
    with pytest.raises(NotImplementedError, match="bias with is_causal"):
        functional.na1d_qk(*first[:2], 3, is_causal=True, rpb=torch.zeros(2, 5))


@pytest.mark.parametrize("version", ["0.15.1", "0.17.5"])
def test_halves_of_nested_tensors(version):
    functional = vecina.compat.for_version(version).functional
    samples = [[heads_first(t) for t in qkv(*n, 3, 4)] for n in ((1, 6, 5), (2, 4, 9))]
    more = [[heads_first(t) for t in qkv(n, 2, 3, 4)[:2]] for n in (1, 2)]
    nested = [torch.nested.nested_tensor([s[i] for s in samples]) for i in range(3)]
    nested_more = [torch.nested.nested_tensor([m[i] for m in more]) for i in range(2)]
    logits = functional.na2d_qk(*nested[:2], 3, 1, nested_more[0])
    weights = torch.nested.nested_tensor([w.softmax(-1) for w in logits.unbind()])
    output = functional.na2d_av(weights, nested[2], 3, 1, nested_more[1])
    assert logits.is_nested and output.is_nested
    for part, mine, (query, key, value), (keys, values) in zip(
        output.unbind(), logits.unbind(), samples, more
    ):
        alone = functional.na2d_qk(query, key, 3, 1, keys)
        torch.testing.assert_close(mine, alone)
        wanted = functional.na2d_av(alone.softmax(-1), value, 3, 1, values)
        torch.testing.assert_close(part, wanted)
    with pytest.raises(ValueError, match="all tensors must be nested"):
        functional.na2d_qk(nested[0], samples[0][1], 3, 1)
    if version == "0.17.5":
        with pytest.raises(NotImplementedError, match="nested and sparse"):
            functional.na2d(*nested, 3)
