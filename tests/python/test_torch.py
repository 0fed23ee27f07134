# SPDX-License-Identifier: MIT
"""vecina.torch: values, gradients, compilation, modules."""

import pathlib
import re

import pytest

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402

import vecina.numpy as vn  # noqa: E402
import vecina.torch as vt  # noqa: E402

REFERENCE = dict(backend="reference")


def tensors(*shapes, dtype=torch.float64, requires_grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(requires_grad)
        for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_are_those_of_numpy(dtype):
    query, key, value = tensors(*[(2, 6, 7, 2, 8)] * 3, dtype=dtype, requires_grad=False)

    def array(tensor):
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        return bits.numpy()

    output, lse = vt.na2d(query, key, value, 3, return_lse=True)
    wanted, wanted_lse = vn.na2d(array(query), array(key), array(value), 3, return_lse=True)
    assert output.dtype == dtype
    np.testing.assert_array_equal(array(output), wanted)
    np.testing.assert_array_equal(lse.numpy(), wanted_lse)


def test_gradient_of_lse_alone_and_of_expanded_sums():
    inputs = tensors(*[(1, 6, 2, 3)] * 3)
    vt.na1d(*inputs, 3, return_lse=True, **REFERENCE)[1].sum().backward()
    assert torch.count_nonzero(inputs[2].grad) == 0 and torch.count_nonzero(inputs[0].grad) > 0
    inputs = tensors(*[(1, 6, 2, 3)] * 3)
    vt.na1d(*inputs, 3, **REFERENCE).sum().backward()
    # Each row of weights sums to 1.
    torch.testing.assert_close(inputs[2].grad.sum(), torch.tensor(36.0, dtype=torch.float64))


def test_autocast():
    inputs = tensors(*[(1, 6, 2, 4)] * 3, dtype=torch.float32, requires_grad=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vt.na1d(*inputs, 3).dtype == torch.bfloat16


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("heads_kv", [None, 2])
def test_modules(rank, heads_kv):
    kind = getattr(vt, f"NeighborhoodAttention{rank}D")
    module = kind(16, 4, 3, num_kv_heads=heads_kv)
    keys = ["qkv"] if heads_kv is None else ["q_proj", "kv_proj"]
    assert sorted(module.state_dict()) == sorted(
        f"{k}.{p}" for k in [*keys, "proj"] for p in ("weight", "bias")
    )
    x = torch.randn(2, *(5, 4, 3)[:rank], 16)
    with torch.no_grad():
        assert module(x).shape == x.shape
    with pytest.raises(ValueError, match="expects input shape"):
        module(x[..., :8])
    with pytest.raises(ValueError, match="embed_dim 15"):
        kind(15, 4, 3)


def test_module_is_its_parts():
    module = vt.NeighborhoodAttention2D(16, 4, 3, dilation=2, qk_scale=0.3).double()
    (x,) = tensors((2, 7, 6, 16), requires_grad=False)
    qkv = torch.nn.functional.linear(x, module.qkv.weight, module.qkv.bias)
    query, key, value = (part.reshape(2, 7, 6, 4, 4) for part in qkv.split(16, -1))
    output = vt.na2d(query, key, value, 3, dilation=2, scale=0.3).reshape(x.shape)
    wanted = torch.nn.functional.linear(output, module.proj.weight, module.proj.bias)
    with torch.no_grad():
        torch.testing.assert_close(module(x), wanted)


def test_attention_dropout_drops_weights_in_training_only():
    module = vt.NeighborhoodAttention1D(16, 4, 3, num_kv_heads=2, is_causal=True, attn_drop=0.5)
    module.proj = torch.nn.Identity()
    (x,) = tensors((1, 2000, 16), dtype=torch.float32, requires_grad=False)
    whole = module.eval()(x)
    torch.testing.assert_close(whole, module(x))
    torch.manual_seed(0)
    dropped = module.train()(x)
    # The first query sees itself alone: it keeps twice its value or nothing, with chance 1/2.
    heads, single = dropped[0, 0].view(4, 4), whole[0, 0].view(4, 4)
    for head, full in zip(heads, single):
        assert torch.allclose(head, 2 * full) or not head.any()
    # Dropped weights are made up for on average, so the sums over many queries agree.
    assert abs((dropped * whole).sum() / whole.square().sum() - 1) < 0.1
    assert not torch.equal(dropped, module(x))


def test_module_with_bias_and_padding():
    module = vt.NeighborhoodAttention2D(8, 2, (3, 4), rel_pos_bias=True, pads_small_inputs=True)
    assert module.rpb.shape == (2, 5, 7) and 0 < module.rpb.abs().max() < 0.2
    (x,) = tensors((1, 2, 5, 8), dtype=torch.float32, requires_grad=False)
    with torch.no_grad():
        padded = module(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1)))
        torch.testing.assert_close(module(x), padded[:, :2])
        before = module(x)
        module.rpb[0] += torch.arange(7.0)  # a bias that grows to the right
        assert (module(x) - before).abs().max() > 1e-3
    module.backend = "reference"
    module(x).sum().backward()
    assert module.rpb.grad.abs().max() > 0
    with pytest.raises(ValueError, match="kernel_size 3"):
        vt.NeighborhoodAttention2D(8, 2, (3, 4))(x)


def test_module_with_lengths():
    module = vt.NeighborhoodAttention1D(8, 2, 3, attn_drop=0.5, backend="reference").eval()
    (x,) = tensors((2, 7, 8), dtype=torch.float32, requires_grad=False)
    lengths = torch.tensor([[7], [5]])
    with torch.no_grad():
        torch.testing.assert_close(module(x, lengths)[1:, :5], module(x[1:, :5]))
    with pytest.raises(NotImplementedError, match="attention dropout with lengths"):
        module.train()(x, lengths)


def test_wrong_arguments_raise_a_sentence():
    (x,) = tensors((1, 8, 2, 4), dtype=torch.float32, requires_grad=False)
    with pytest.raises(ValueError, match="kernel_size 9"):
        vt.na1d(x, x, x, 9)
    with pytest.raises(ValueError, match="na2d takes 5"):
        vt.na2d(x, x, x, 3)
    with pytest.raises(ValueError, match="value is f64"):
        vt.na1d(x, x, x.double(), 3)
    with pytest.raises(ValueError, match="two or more"):
        vt.merge_attentions([x], [x[..., 0]])


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/migration.md"])
def test_code_of_the_pages(page):
    text = (pathlib.Path(__file__).parents[2] / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_nondeterministic_backward_is_asked_for(monkeypatch):
    asked = []
    backward = vt._vecina.backward

    def record(*args):
        asked.append(args[-1])
        return backward(*args)

    monkeypatch.setattr(vt._vecina, "backward", record)
    inputs = tensors(*[(1, 6, 7, 2, 8)] * 3)

    def gradients():
        return torch.autograd.grad(vt.na2d(*inputs, 3).sum(), inputs)

    expected = gradients()
    vt.allow_nondeterministic_backward()
    try:
        assert vt.is_nondeterministic_backward_allowed()
        for mine, wanted in zip(gradients(), expected, strict=True):
            assert torch.equal(mine, wanted)  # on the CPU the sums have one order always
        torch.use_deterministic_algorithms(True)
        assert not vt.is_nondeterministic_backward_allowed()
        gradients()
    finally:
        torch.use_deterministic_algorithms(False)
        vt.allow_nondeterministic_backward(False)
    gradients()
    assert asked == [False, True, False, False]


def test_batch_0_gives_no_sample():
    none = torch.zeros(0, 9, 2, 4)
    leaf = none.clone().requires_grad_()
    assert vt.na1d(none, none, none[..., :3], 3, output_stride=2).shape == (0, 5, 2, 3)
    assert vt.attention(none, none[:, :5], none[:, :5]).shape == none.shape
    assert vt.na1d(none, none, none, 3, return_lse=True)[1].shape == (0, 9, 2)
    layer = vt.NeighborhoodAttention1D(8, 2, 3)
    for output in (
        vt.na1d(leaf, leaf, leaf, 3), vt.attention(leaf, leaf, leaf), vt.qk(leaf, leaf, 3),
        vt.av(leaf[..., :3], leaf, 3), layer(leaf.flatten(-2)),
        vt.merge_attentions([leaf, leaf], [leaf[..., 0], leaf[..., 1]])[0],
        torch.compile(lambda x: vt.na1d(x, x, x, 3), backend="aot_eager")(leaf),
    ):  # fmt: skip
        (gradient,) = torch.autograd.grad(output.sum(), leaf)
        assert len(output) == 0 and gradient.shape == leaf.shape
    tensors = torch.zeros(3, 0, 2, 9, 2, 4)
    assert torch.vmap(lambda q, k, v: vt.na1d(q, k, v, 3))(*tensors).shape == tensors[0].shape


def test_samples_that_are_all_empty():
    none = torch.zeros(1, 0, 2, 4, requires_grad=True)
    for lengths in (torch.tensor([0, 0]), torch.tensor([[0, 6], [0, 9]])):
        for most in (None, [9] * lengths.ndim):
            found = vt.neighborhood_attention_varlen(
                none, none, none, lengths, 3, dilation=2, max_lengths=most
            )
            assert found.shape == none.shape
            found.sum().backward()
    assert vt.attention_varlen(none, none, none, torch.tensor([0, 0])).shape == none.shape
    keyless = vt.attention_varlen(
        torch.ones(1, 9, 2, 4), none, none, torch.tensor([0]), query_lengths=torch.tensor([9])
    )
    assert keyless.shape == (1, 9, 2, 4) and not keyless.any()


@pytest.mark.parametrize("kind", ["neg view", "imaginary part"])
def test_tensors_whose_memory_has_the_other_sign(kind):
    plain = torch.randn(2, 9, 2, 1)
    other = torch._neg_view(-plain)
    if kind == "imaginary part":
        other = torch.complex(plain, -plain).conj().imag
    assert other.is_neg() and torch.equal(other, plain)
    key, leaf = torch.randn(2, 2, 9, 2, 1).unbind()
    leaf = leaf.requires_grad_()
    for call in (
        lambda x: vt.na1d(x, key, key, 3, scale=3.0), lambda x: vt.attention(key, key, x),
        lambda x: vt.qk(x, key, 3), lambda x: vt.av(key.expand(2, 9, 2, 3).contiguous(), x, 3),
        lambda x: vt.merge_attentions([x, key], [key[..., 0], key[..., 0]])[0],
        lambda x: torch.autograd.grad(vt.na1d(x, leaf, x, 3), leaf, x)[0],
        lambda x: torch.autograd.grad(vt.attention(x, leaf, x), leaf, x)[0],
        lambda x: torch.autograd.grad(vt.qk(leaf, key, 1), leaf, x)[0],
    ):  # fmt: skip
        # A plan may be held by then, but is not for tensors that lie as imaginary parts do.
        for _ in range(3 if kind == "imaginary part" else 1):
            assert torch.equal(call(other), call(plain))
