# SPDX-License-Identifier: MIT
"""vecina.mlx and vecina.jax: the results and gradients of vecina.numpy, by their own transforms."""

import gc
import importlib
import weakref

import numpy as np
import pytest

import vecina.numpy as vn

RNG = np.random.default_rng(0)
WINDOW = dict(kernel_size=3, dilation=2, is_causal=True)
LENGTHS = np.array([6, 5])


def normal(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def more(samples):
    shapes = dict(additional_keys=(samples, 2, 2, 4), additional_values=(samples, 2, 2, 3))
    return {name: normal(*shape) for name, shape in shapes.items()}


QKV = dict(query=normal(1, 11, 4, 4), key=normal(1, 11, 2, 4), value=normal(1, 11, 2, 3))
#: function, its arrays, the rest
CALLS = {
    "na1d": ("na1d", {**QKV, **more(1), "bias": normal(4, 5)}, WINDOW),
    "output_stride": ("neighborhood_attention", QKV, dict(kernel_size=4, output_stride=2)),
    "packed": ("neighborhood_attention_varlen", {**QKV, **more(2)}, dict(lengths=LENGTHS, **{
        **WINDOW, "dilation": 1})),
    "padded": ("na1d", QKV, dict(lengths=np.array([[7]]), kernel_size=3)),
    "attention": ("attention", {**QKV, **more(1)}, dict(is_causal=True, scale=0.3)),
    "attention_varlen": ("attention_varlen", QKV, dict(lengths=LENGTHS)),
    "qk": ("qk", dict(query=QKV["query"], key=QKV["key"], bias=normal(4, 5)), dict(kernel_size=3)),
    "av": ("av", dict(attention=normal(1, 11, 4, 3), value=QKV["value"]), WINDOW),
}  # fmt: skip
WITHOUT_LSE = ("qk", "av")


@pytest.fixture(params=["mlx", "jax"])
def framework(request):
    """(functions, array of NumPy's, where, grad of a loss by every argument)."""
    if request.param == "mlx":
        mx = pytest.importorskip("mlx.core")
        grad, array, where = mx.grad, mx.array, mx.where
    else:
        jax = pytest.importorskip("jax")
        grad, array, where = jax.grad, jax.numpy.array, jax.numpy.where
    module = importlib.import_module(f"vecina.{request.param}")

    def slopes(loss, *arrays):
        return grad(loss, argnums=tuple(range(len(arrays))))(*arrays)

    return module, array, where, slopes


def slopes_of(name, arrays, rest, results, gradients):
    """The gradients by vecina.numpy's own backward function, in the order of arrays."""
    general = "neighborhood_attention" if name == "na1d" else name
    named = dict(output=results[0], lse=results[-1], grad_lse=gradients[-1])
    if name in WITHOUT_LSE:
        named = {}
    named["grad_weights" if name == "qk" else "grad_output"] = gradients[0]
    found = getattr(vn, f"{general}_backward")(**arrays, **rest, **named)
    return [found[f"grad_{key}"] for key in arrays]


@pytest.mark.parametrize("case", CALLS)
def test_values_and_gradients(case, framework):
    module, array, where, grad = framework
    name, arrays, rest = CALLS[case]
    extra = {} if name in WITHOUT_LSE else dict(return_lse=True)
    wanted = getattr(vn, name)(**arrays, **rest, **extra)
    wanted = wanted if extra else (wanted,)
    weights = [normal(*a.shape) * np.isfinite(a) for a in wanted]

    def call(*given):
        found = getattr(module, name)(**dict(zip(arrays, given)), **rest, **extra)
        return found if extra else (found,)

    def loss(*given):
        finite = [where(array(np.isfinite(a)), b, 0) for a, b in zip(wanted, call(*given))]
        return sum((a * array(w)).sum() for a, w in zip(finite, weights))

    given = [array(each) for each in arrays.values()]
    for mine, theirs in zip(call(*given), wanted, strict=True):
        assert type(mine) is type(given[0])
        np.testing.assert_array_equal(np.asarray(mine), theirs)
    slopes = slopes_of(name, arrays, rest, wanted, weights)
    for mine, theirs in zip(grad(loss, *given), slopes, strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-5, atol=1e-5)


def test_merging(framework):
    module, array, _, grad = framework
    outputs, lses = [normal(1, 5, 2, 4) for _ in range(3)], [normal(1, 5, 2) for _ in range(3)]
    wanted = vn.merge_attentions(outputs, lses)
    given = [array(each) for each in [*outputs, *lses]]
    for mine, theirs in zip(module.merge_attentions(given[:3], given[3:]), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), theirs)

    def loss(*parts):
        output, lse = module.merge_attentions(parts[:3], parts[3:])
        return output.sum() + lse.sum()

    slopes = vn.merge_attentions_backward(
        outputs, lses, np.ones_like(wanted[0]), np.ones_like(wanted[1])
    )
    for mine, theirs in zip(grad(loss, *given), [*slopes[0], *slopes[1]], strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_and_views_of_mlx(dtype):
    mx, vm = pytest.importorskip("mlx.core"), importlib.import_module("vecina.mlx")
    packed = mx.array(normal(2, 6, 5, 3, 2, 8)).astype(getattr(mx, dtype), stream=mx.cpu)
    with mx.stream(mx.cpu):
        views = [part.squeeze(3) for part in mx.split(packed, 3, axis=3)]
        found, lse = vm.na2d(*views, 3, return_lse=True)
        assert found.dtype == packed.dtype
        assert lse.dtype == (mx.float64 if dtype == "float64" else mx.float32)
        wide = [np.asarray(view.astype(mx.float64)) for view in views]
        error = np.abs(np.asarray(found.astype(mx.float64)) - vn.na2d(*wide, 3)).max()
        grad = mx.grad(lambda query: vm.na2d(query, *views[1:], 3).sum())(views[0])
        assert grad.dtype == packed.dtype
    assert error < {"bfloat16": 2e-2, "float16": 2e-3, "float64": 1e-12}[dtype]


def test_what_does_not_fit(framework):
    module, array, *_ = framework
    query, lse = array(np.zeros((1, 6, 2, 4), np.float32)), array(np.zeros((1, 6, 2), np.float32))
    bits = array(np.zeros((1, 6, 2, 4), np.uint16))
    with pytest.raises(ValueError, match="na2d takes 5"):
        module.na2d(query, query, query, 3)
    with pytest.raises(ValueError, match=r"value is list; .*rray is needed"):
        module.na1d(query, query, [[[[0.0]]]], 3)
    with pytest.raises(ValueError, match=r"value is NoneType; .*rray is needed"):
        module.attention(query, query, None)
    for wrong in (dict(key=bits), dict(additional_keys=bits, additional_values=query)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is uint16; one of float16"):
            module.na1d(**{**dict(query=query, key=query, value=query), **wrong}, kernel_size=3)
    with pytest.raises(ValueError, match="value has no dimensions"):
        module.attention(query, query, query.sum())
    with pytest.raises(ValueError, match="output_stride"):
        module.na1d(query, query, query, 3, output_stride="2")
    for outputs, lses in (([], []), ([query], [lse]), ([query, query], [lse])):
        with pytest.raises(ValueError, match="two or more outputs and as many lses"):
            module.merge_attentions(outputs, lses)
    with pytest.raises(ValueError, match=r"lses\[1\] is str"):
        module.merge_attentions([query, query], [lse, "lse"])


def test_what_mlx_refuses():
    mx, vm = pytest.importorskip("mlx.core"), importlib.import_module("vecina.mlx")
    query = mx.array(normal(1, 6, 2, 4))
    with pytest.raises(ValueError, match="kernel_size"):
        vm.na1d(query, query, query, 7)
    with pytest.raises(ValueError, match="value is ndarray; mlx.core.array"):
        vm.na1d(query, query, np.zeros((1, 6, 2, 4)), 3)

    def call(q):
        return vm.na1d(q, query, query, 3)

    for transform, array in ((mx.compile, query), (mx.vmap, query[None])):
        with pytest.raises(ValueError, match="compile or vmap"):
            transform(call)(array)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        mx.jvp(call, [query], [query])
    slope = mx.grad(lambda q: call(q).square().sum())
    assert np.asarray(slope(query)).any()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        mx.jvp(slope, [query], [query])
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        mx.grad(lambda q: slope(q).square().sum())(query)


def test_natten_mlx():
    mx = pytest.importorskip("mlx.core")
    port = importlib.import_module("vecina.compat.natten_mlx")
    query, key, value = (mx.array(normal(2, 9, 2, 4)) for _ in range(3))
    output, lse = port.na1d(query, key, value, 3, stride=2, return_lse=True)
    logits = port.na1d_qk(query, key, 3, stride=2)
    found = port.na1d_av(mx.exp(logits - lse[..., None]), value, 3, stride=2)
    assert isinstance(found, mx.array)
    np.testing.assert_allclose(np.asarray(found), np.asarray(output), atol=1e-5)
    varlen = port.na1d_varlen(query, key, value, mx.array([9, 5]), 3)
    assert not np.asarray(varlen)[1, 5:].any()
    grad = mx.grad(lambda q: port.na1d(q, key, value, 3).square().sum())(query)
    assert np.asarray(grad).any()
    merged, _ = port.merge_attentions([output, output], [lse, lse])
    np.testing.assert_allclose(np.asarray(merged), np.asarray(output), atol=1e-6)


def test_transforms_of_jax():
    jax, vj = pytest.importorskip("jax"), importlib.import_module("vecina.jax")
    tensors = [jax.numpy.asarray(normal(3, 1, 6, 5, 2, 8)) for _ in range(3)]

    def call(query, key, value):
        return vj.na2d(query, key, value, (3, 2), is_causal=(True, False))

    wanted = np.stack([vn.na2d(*map(np.asarray, parts), (3, 2), is_causal=(True, False))
                       for parts in zip(*tensors)])  # fmt: skip
    for transformed in (jax.vmap(call), jax.jit(jax.vmap(call))):
        np.testing.assert_array_equal(np.asarray(transformed(*tensors)), wanted)
    slope = jax.jit(jax.grad(lambda query, *rest: call(query, *rest).sum()))
    single = [tensor[0] for tensor in tensors]
    bf16 = [tensor.astype(jax.numpy.bfloat16) for tensor in single]
    exact, rounded = slope(*single), slope(*bf16)
    assert rounded.dtype == jax.numpy.bfloat16
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact)).max()
    assert error < 2e-2 * np.abs(np.asarray(exact)).max()
    with pytest.raises(jax.errors.JaxRuntimeError, match="kernel_size 9 x dilation 1"):
        vj.na2d(*single, 9).block_until_ready()
    assert isinstance(vj.na2d(*map(np.asarray, single), 3), jax.Array)


def test_eager_calls_of_jax_are_compiled_once_and_hold_nothing():
    jax, vj = pytest.importorskip("jax"), importlib.import_module("vecina.jax")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def call(lengths, **keywords):
        query = jax.numpy.asarray(normal(1, 11, 4, 4))
        kept.append(weakref.ref(query))
        slope = jax.grad(lambda query: vj.neighborhood_attention_varlen(
            query, query, query, lengths, **keywords).sum())(query)  # fmt: skip
        return np.asarray(slope)

    kept = []
    call(LENGTHS.copy(), kernel_size=[3])
    assert compiled
    compiled.clear()
    call(LENGTHS.copy(), kernel_size=[3])
    gc.collect()
    assert all(reference() is None for reference in kept)
    assert not compiled
    # What is not equal is not taken for it.
    call(np.array([3, 8]), kernel_size=[3])
    assert compiled
    with pytest.raises(jax.errors.JaxRuntimeError, match="is_causal"):
        call(LENGTHS, kernel_size=[3], is_causal=0)
