# SPDX-License-Identifier: MIT
"""Query and key in float8_e4m3fn: the numbers that they hold, in double; and what there is not."""

import importlib

import numpy as np
import pytest

import vecina.numpy as vn

REFERENCE = dict(backend="reference")
HEAD_SCALE = [0.5, 3.0, 1.0, 0.125]


def doubles(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


#: function -> shapes of query, key, value, additional_keys, additional_values; the rest
CALLS = {
    "na1d": ([(2, 9, 4, 8), (2, 9, 2, 8), (2, 9, 2, 3), (2, 2, 2, 8), (2, 2, 2, 3)],
             dict(kernel_size=4, is_causal=True)),
    "na2d": ([(1, 5, 6, 4, 8)] * 3, dict(kernel_size=3, output_stride=2)),
    "attention": ([(1, 7, 4, 8), (1, 9, 4, 8), (1, 9, 4, 8)], {}),
    "neighborhood_attention_varlen": ([(1, 41, 4, 8)] * 3, dict(lengths=np.array([[5, 4], [3, 7]]),
                                                                kernel_size=3)),
    "attention_varlen": ([(1, 12, 4, 8)] * 3, dict(lengths=np.array([5, 7]))),
}  # fmt: skip
NAMES = ("query", "key", "value", "additional_keys", "additional_values")


class Torch:
    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.module = importlib.import_module("vecina.torch")
        self.narrow, self.wide, self.tolerance = self.torch.float8_e4m3fn, self.torch.float64, 1e-12

    def array(self, numbers, dtype=None):
        return self.torch.tensor(numbers).to(dtype)

    def double(self, array):
        return array.double().numpy()


class Numpy:
    def __init__(self):
        self.module, self.wide, self.tolerance = vn, np.float64, 1e-12
        self.narrow = pytest.importorskip("ml_dtypes").float8_e4m3fn

    def array(self, numbers, dtype=None):
        return np.asarray(numbers, dtype)

    def double(self, array):
        return np.asarray(array).astype(np.float64)


class Jax(Numpy):
    def __init__(self):
        super().__init__()
        self.jax = pytest.importorskip("jax")
        self.module = importlib.import_module("vecina.jax")
        self.wide, self.tolerance = np.float32, 1e-6


@pytest.fixture(params=[Torch, Numpy, Jax])
def front(request):
    return request.param()


@pytest.mark.parametrize("name", CALLS)
def test_values(name, front):
    shapes, rest = CALLS[name]
    arrays = [
        front.array(numbers, front.wide if "value" in argument else front.narrow)
        for argument, numbers in zip(NAMES, doubles(*shapes))
    ]
    given = dict(zip(NAMES, arrays), **rest, **REFERENCE)
    if "lengths" in rest:
        given["lengths"] = front.array(rest["lengths"])
    scale = front.array(HEAD_SCALE, front.wide)
    output, lse = getattr(front.module, name)(**given, head_scale=scale, return_lse=True)
    assert output.dtype == lse.dtype == front.wide
    numbers = dict(zip(NAMES, map(front.double, arrays)))
    numbers["query"] = numbers["query"] * np.array(HEAD_SCALE)[:, None]
    wanted, wanted_lse = getattr(vn, name)(**numbers, **rest, **REFERENCE, return_lse=True)
    np.testing.assert_allclose(front.double(output), wanted, atol=front.tolerance)
    np.testing.assert_allclose(front.double(lse), wanted_lse, atol=front.tolerance)
    unscaled = getattr(front.module, name)(**given)
    assert np.abs(front.double(unscaled) - wanted).max() > 1e-3


def test_bytes_are_e4m3():
    narrow = pytest.importorskip("ml_dtypes").float8_e4m3fn
    query, key = (numbers.astype(narrow) for numbers in doubles(*[(1, 6, 2, 8)] * 2))
    (value,) = doubles((1, 6, 2, 8), seed=1)
    named = vn.na1d(query, key, value.astype(np.float16), 3, **REFERENCE)
    bits = vn.na1d(query.view(np.uint8), key.view(np.uint8), value.astype(np.float16), 3,
                   **REFERENCE)  # fmt: skip
    np.testing.assert_array_equal(named, bits)


def test_jax_says_that_there_are_no_gradients():
    front = Jax()
    query = front.array(doubles((1, 6, 2, 8))[0], front.narrow)
    value = front.jax.numpy.ones((1, 6, 2, 8))

    def loss(value):
        return front.module.na1d(query, query, value, 3, **REFERENCE).sum()

    assert loss(value) == pytest.approx(value.size)
    with pytest.raises(NotImplementedError, match="float8_e4m3fn have no gradients"):
        front.jax.grad(loss)(value)


def test_numpy_says_that_there_are_no_gradients():
    narrow = pytest.importorskip("ml_dtypes").float8_e4m3fn
    query, value = doubles((1, 6, 2, 8))[0].astype(narrow), np.ones((1, 6, 2, 8), np.float32)
    for q in (query, query.view(np.uint8)):
        output, lse = vn.na1d(q, q, value, 3, **REFERENCE, return_lse=True)
        for keys in (q, value):
            with pytest.raises(NotImplementedError, match="float8_e4m3fn have no gradients"):
                vn.neighborhood_attention_backward(
                    keys, q, value, output, lse, value, 3, **REFERENCE
                )
        with pytest.raises(NotImplementedError, match="float8_e4m3fn have no gradients"):
            vn.attention_backward(q, q, value, output, lse, value, **REFERENCE)


def test_jax_takes_a_traced_head_scale():
    front = Jax()
    query = front.array(doubles((1, 6, 4, 8))[0], front.narrow)
    value = front.array(doubles((1, 6, 4, 8), seed=1)[0], np.float32)
    scale, traces = front.array(HEAD_SCALE, np.float32), []

    @front.jax.jit
    def call(query, value, scale):
        traces.append(scale)
        return front.module.na1d(query, query, value, 3, head_scale=scale, **REFERENCE)

    for factor in (1, 2):
        wanted = vn.na1d(query, query, value, 3, head_scale=factor * scale, **REFERENCE)
        np.testing.assert_allclose(call(query, value, factor * scale), wanted, atol=1e-6)
    assert len(traces) == 1
    with pytest.raises(NotImplementedError, match="float8_e4m3fn have no gradients"):
        front.jax.grad(lambda scale: call(query, value, scale).sum())(scale)
    with pytest.raises(ValueError, match="head_scale is list"):
        front.module.na1d(query, query, value, 3, head_scale=HEAD_SCALE, **REFERENCE)


@pytest.fixture
def tensors():
    """(query, key, value) of PyTorch, in 8 and 16 bits."""
    front = Torch()
    query, key, value = doubles(*[(1, 9, 4, 8)] * 3)
    narrow = (front.array(numbers, front.narrow) for numbers in (query, key))
    return (*narrow, front.array(value, front.torch.bfloat16))


def test_calls_that_repeat_read_the_head_scale_anew(tensors):
    torch, vt = pytest.importorskip("torch"), importlib.import_module("vecina.torch")
    scale = torch.tensor(HEAD_SCALE)

    def lse(**more):
        output, lse = vt.na1d(*tensors, 3, return_lse=True, head_scale=scale, **more)
        assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
        return lse

    before = [lse(**REFERENCE) for _ in range(3)]
    assert torch.equal(before[0], before[2])
    scale *= 2.0
    after = lse(**REFERENCE)
    wide = [tensors[0].float() * scale[:, None], tensors[1].float(), tensors[2].float()]
    wanted = vt.na1d(*wide, 3, return_lse=True)[1]
    torch.testing.assert_close(after, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[0], after)


def test_the_cpu_says_who_can(tensors):
    vt = importlib.import_module("vecina.torch")
    for more in ({}, dict(backend="cpu")):
        with pytest.raises(NotImplementedError, match="e4m3.*cuda.*9.0.*reference"):
            vt.na1d(*tensors, 3, **more)


def test_no_gradients(tensors):
    torch, vt = pytest.importorskip("torch"), importlib.import_module("vecina.torch")
    query, key, value = tensors
    leaf = value.clone().requires_grad_()
    scale = torch.tensor(HEAD_SCALE, requires_grad=True)
    for given in (
        dict(query=query, key=key, value=leaf),
        dict(query=query, key=key, value=value, head_scale=scale),
        dict(query=query.clone().requires_grad_(), key=key, value=value),
    ):
        with pytest.raises(NotImplementedError, match="no gradients.*torch.no_grad"):
            vt.na1d(**given, kernel_size=3, **REFERENCE)
        with torch.no_grad():
            assert not vt.na1d(**given, kernel_size=3, **REFERENCE).requires_grad
    flops = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
    with flops, pytest.raises(NotImplementedError, match="no gradients"):  # by the op
        vt.na1d(query, key, leaf, 3, **REFERENCE)
    with vt.decompose():
        for mixed in ((query, key), (value, key), (query, value)):
            with pytest.raises(NotImplementedError, match="float8_e4m3fn inside decompose"):
                vt.na1d(*mixed, value, 3)
        with pytest.raises(NotImplementedError, match="head_scale inside decompose"):
            vt.na1d(value, value, value, 3, head_scale=scale)


def test_who_sees_ops(tensors):
    torch, vt = pytest.importorskip("torch"), importlib.import_module("vecina.torch")
    query, key, value = tensors
    wanted = vt.na1d(query, key, value, 3, **REFERENCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # casts the value alone
        assert torch.equal(vt.na1d(query, key, value.float(), 3, **REFERENCE), wanted)
        double = vt.na1d(query, key, value.double(), 3, **REFERENCE)
    assert torch.equal(double, vt.na1d(query, key, value.double(), 3, **REFERENCE))
    assert double.dtype == torch.float64
    meta = [tensor.to("meta") for tensor in tensors]
    output, lse = vt.na1d(*meta, 3, return_lse=True)
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    scale = torch.tensor(HEAD_SCALE)
    compiled = torch.compile(
        lambda *three: vt.na1d(*three, 3, head_scale=scale, **REFERENCE),
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(
            compiled(*tensors), vt.na1d(*tensors, 3, head_scale=scale, **REFERENCE)
        )
    two = torch.stack([value, 2 * value])
    mapped = torch.func.vmap(lambda v: vt.na1d(query, key, v, 3, head_scale=scale, **REFERENCE))
    torch.testing.assert_close(mapped(two)[1], 2 * compiled(*tensors))
    with pytest.raises(NotImplementedError, match="vmap over head_scale"):
        torch.func.vmap(
            lambda s: vt.na1d(*tensors, 3, head_scale=s, **REFERENCE)
        )(torch.stack([scale, scale]))  # fmt: skip


def test_what_does_not_fit(tensors):
    torch, vt = pytest.importorskip("torch"), importlib.import_module("vecina.torch")
    query, key, value = tensors
    scale = torch.tensor(HEAD_SCALE)
    for given, words in (
        (dict(key=value), "key is bf16.*e4m3"),
        (dict(query=value), "key is e4m3.*bf16"),
        (dict(value=key), "dtype.*e4m3"),
        (dict(head_scale=scale[:2]), r"head_scale.*\[2\].*\[4\]"),
        (dict(head_scale=scale.double()), "head_scale is f64"),
        (dict(head_scale=scale - 0.5), r"head_scale\[0\] is 0.*above 0"),
        (dict(query=value, key=value, head_scale=scale), "query_key_dtype is not e4m3"),
    ):
        with pytest.raises(ValueError, match=words):
            vt.na1d(**{**dict(query=query, key=key, value=value), **given}, kernel_size=3,
                    **REFERENCE)  # fmt: skip
    with pytest.raises(ValueError, match="e4m3"):
        vt.qk(query, key, 3, **REFERENCE)
