# SPDX-License-Identifier: MIT
"""qk() and av() against the whole, and what they exist for: the logits, other derivatives."""

import numpy as np
import pytest

import vecina.numpy as vn

CASES = {
    "1d dilation, causal": ((2, 9), dict(kernel_size=4, dilation=2, is_causal=True)),
    "2d stride, one causal axis": (
        (1, 6, 7),
        dict(kernel_size=(4, 3), stride=(2, 1), is_causal=(False, True)),
    ),
    "3d output_stride": ((1, 5, 4, 4), dict(kernel_size=3, output_stride=(1, 2, 1))),
}


def inputs(case, rng):
    tokens, keywords = CASES[case]
    kernel = keywords["kernel_size"]
    kernel = (kernel,) * (len(tokens) - 1) if isinstance(kernel, int) else kernel
    arrays = [
        rng.standard_normal((*tokens, 4, 3)),
        rng.standard_normal((*tokens, 2, 3)),
        rng.standard_normal((*tokens, 2, 5)),
        rng.standard_normal((tokens[0], 2, 2, 3)),
        rng.standard_normal((tokens[0], 2, 2, 5)),
        rng.standard_normal((4, *(2 * k - 1 for k in kernel))),
    ]
    return arrays, keywords


@pytest.mark.parametrize("right_aligned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_halves_make_the_whole(case, right_aligned):
    (query, key, value, keys, values, bias), keywords = inputs(case, np.random.default_rng(0))
    logits = vn.qk(
        query, key, **keywords, additional_keys=keys, bias=bias, right_aligned=right_aligned
    )
    assert (logits == -np.inf).any() == bool(np.any(keywords.get("is_causal", False)))
    lse = np.log(np.exp(logits).sum(-1))
    weights = np.exp(logits - lse[..., None])
    output = vn.av(
        weights, value, **keywords, additional_values=values, right_aligned=right_aligned
    )
    wanted, wanted_lse = vn.neighborhood_attention(
        query, key, value, **keywords, additional_keys=keys, additional_values=values, bias=bias,
        return_lse=True, backend="reference",
    )  # fmt: skip
    np.testing.assert_allclose(output, wanted, atol=1e-12)
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-12)
    torch = pytest.importorskip("torch")
    import vecina.torch as vt

    tensors = [torch.from_numpy(array) for array in (query, key, value, keys, values, bias)]
    same = vt.qk(
        *tensors[:2], **keywords, additional_keys=tensors[3], bias=tensors[5],
        right_aligned=right_aligned,
    )  # fmt: skip
    np.testing.assert_allclose(same, logits, atol=1e-12)
    same = vt.av(
        same.softmax(-1), tensors[2], **keywords, additional_values=tensors[4],
        right_aligned=right_aligned,
    )  # fmt: skip
    np.testing.assert_allclose(same, wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("right_aligned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_composition(case, right_aligned, dtype):
    torch = pytest.importorskip("torch")
    import vecina.torch as vt

    arrays, keywords = inputs(case, np.random.default_rng(1))
    keywords = dict(keywords, right_aligned=right_aligned)
    dtype = getattr(torch, dtype)

    def run(composed):
        tensors = [torch.from_numpy(array).to(dtype) for array in arrays]
        if composed:  # in double, of the rounded inputs
            tensors = [tensor.double() for tensor in tensors]
        query, key, value, keys, values, bias = [t.requires_grad_() for t in tensors]
        logits = vt.qk(query, key, **keywords, additional_keys=keys, bias=bias)
        attention = logits.detach().softmax(-1).requires_grad_()
        output = vt.av(attention, value, **keywords, additional_values=values)
        tensors.append(attention)
        loss = logits.double().clamp(min=-9).square().sum() + output.double().square().sum()
        return logits, output, torch.autograd.grad(loss, tensors)

    with vt.decompose():
        logits, output, wanted = run(True)
    found_logits, found_output, found = run(False)
    assert found_logits.dtype == found_output.dtype == dtype
    error = max(torch.finfo(dtype).eps * 8, 1e-12)
    for tensor, other in zip((found_logits, found_output, *found), (logits, output, *wanted)):
        error_of = error * max(1.0, other[other.isfinite()].abs().max().item())
        torch.testing.assert_close(tensor.double(), other, rtol=error, atol=error_of)


def test_numpy_gradients_are_torchs():
    torch = pytest.importorskip("torch")
    import vecina.torch as vt

    (query, key, value, keys, values, bias), keywords = inputs(
        "2d stride, one causal axis", np.random.default_rng(2)
    )
    tensors = [torch.from_numpy(a).requires_grad_() for a in (query, key, keys, bias)]
    logits = vt.qk(*tensors[:2], **keywords, additional_keys=tensors[2], bias=tensors[3])
    grad = torch.randn(logits.shape, dtype=logits.dtype)
    found = vn.qk_backward(
        query, key, grad.numpy(), **keywords, additional_keys=keys, bias=bias
    )
    assert list(found) == ["grad_query", "grad_key", "grad_additional_keys", "grad_bias"]
    for array, wanted in zip(found.values(), torch.autograd.grad(logits, tensors, grad)):
        np.testing.assert_array_equal(array, wanted)
    tensors = [logits.detach().softmax(-1).requires_grad_()]
    tensors += [torch.from_numpy(a).requires_grad_() for a in (value, values)]
    output = vt.av(*tensors[:2], **keywords, additional_values=tensors[2])
    grad = torch.randn(output.shape, dtype=output.dtype)
    found = vn.av_backward(
        tensors[0].detach().numpy(), value, grad.numpy(), **keywords, additional_values=values
    )
    assert list(found) == ["grad_attention", "grad_value", "grad_additional_values"]
    for array, wanted in zip(found.values(), torch.autograd.grad(output, tensors, grad)):
        np.testing.assert_array_equal(array, wanted)


def test_autocast_and_the_backend():
    torch = pytest.importorskip("torch")
    import vecina.torch as vt

    x = torch.randn(1, 8, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = vt.qk(x, x, 3, bias=torch.zeros(2, 5))
        output = vt.av(logits.softmax(-1), x, 3)
    assert logits.dtype == output.dtype == torch.bfloat16
    same = vt.qk(x, x, 3, backend="reference")
    torch.testing.assert_close(same, vt.qk(x, x, 3))
    with pytest.raises(ValueError, match="nothing"):
        vt.qk(x, x, 3, backend="nothing")


def test_flops():
    torch = pytest.importorskip("torch")
    import vecina.torch as vt
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 8, 2, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        logits = vt.qk(x, x, 3)
        assert counter.get_total_flops() == 2 * 8 * 2 * 3 * 4
        output = vt.av(logits, x, 3)
        assert counter.get_total_flops() == 2 * 2 * 8 * 2 * 3 * 4
        output.sum().backward()
    assert counter.get_total_flops() == 6 * 2 * 8 * 2 * 3 * 4


def test_where_the_empty_slots_lie():
    ones = np.ones((1, 4, 1, 1))
    first = vn.qk(ones, ones, 3, is_causal=True, scale=1.0)[0, :, 0]
    np.testing.assert_array_equal(first[:2], [[1, -np.inf, -np.inf], [1, 1, -np.inf]])
    last = vn.qk(ones, ones, 3, is_causal=True, scale=1.0, right_aligned=True)[0, :, 0]
    np.testing.assert_array_equal(last[:2], [[-np.inf, -np.inf, 1], [-np.inf, 1, 1]])
    # What stands in an empty slot does not count.
    np.testing.assert_array_equal(
        vn.av(np.ones((1, 4, 1, 3)), ones, 3, is_causal=True)[0, :, 0, 0], [1, 2, 3, 3]
    )


def test_other_derivatives():
    torch = pytest.importorskip("torch")
    import vecina.torch as vt

    def call(query, key, bias):
        return vt.av(vt.qk(query, key, 3, bias=bias).softmax(-1), key, 3)

    tensors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 5, 2, 2), (1, 5, 2, 2), (2, 5))
    ]
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


X = np.zeros((1, 8, 2, 4))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: vn.qk(X, X, 9), ["kernel_size 9", "8 tokens"]),
        (lambda: vn.qk(X, X, 3.0), ["kernel_size is 3.0"]),
        (lambda: vn.qk(X, X, 3, is_causal=1), ["is_causal is 1", "bool"]),
        (lambda: vn.qk(X, X, (3, 3)), ["kernel_size is (3, 3)", "axis"]),
        (lambda: vn.qk(X, X[:, :7], 3), ["query has 8 tokens", "key has 7"]),
        (lambda: vn.qk(X[:, :, :1], X, 3), ["heads 1", "heads_kv 2"]),
        (lambda: vn.qk(X, X, 3, bias=np.zeros((2, 4))), ["bias has shape [2, 4]", "[2, 5]"]),
        (lambda: vn.qk(X, X, 3, additional_keys=X[..., :3]), ["additional_key has shape"]),
        (lambda: vn.av(np.zeros((1, 8, 2, 4)), X, 3), ["[1, 8, 2, 4]", "[1, 8, 2, 3]"]),
        (lambda: vn.av(X, X[..., 0], 3), ["dimensions"]),
        (lambda: vn.av(X[..., :3], X[..., :3].astype("f4"), 3), ["weights is f64", "f32"]),
        (lambda: vn.qk_backward(X, X, X, 3), ["grad_weights has shape"]),
        (lambda: vn.av(np.zeros((1, 7, 2, 3)), X, 3), ["attention has shape [1, 7,", "[1, 8,"]),
    ],
)
def test_wrong_arguments_raise_a_sentence(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)
