# SPDX-License-Identifier: MIT
"""vecina.mlx and vecina.jax: the results and gradients of vecina.numpy, by their own transforms."""

import gc
import importlib
import importlib.util
import subprocess
import sys
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


def flat(parameters):
    utils = importlib.import_module("mlx.utils")
    return utils.tree_flatten(parameters)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(num_kv_heads=2, is_causal=True, qk_scale=0.3, qkv_bias=False),
        dict(rel_pos_bias=True, dilation=2),
        dict(pads_small_inputs=True, kernel_size=4, dilation=2, output_stride=2),
    ],
    ids=["plain", "groups", "bias", "padded"],
)
def test_modules_of_mlx_are_those_of_torch(rank, options):
    mx, torch = pytest.importorskip("mlx.core"), pytest.importorskip("torch")
    import vecina.mlx as vm
    import vecina.torch as vt

    kind, arguments = f"NeighborhoodAttention{rank}D", dict(kernel_size=3) | options
    theirs = getattr(vt, kind)(16, 4, **arguments)
    ours = getattr(vm, kind)(16, 4, **arguments)
    state = [(n, mx.array(t.detach().numpy())) for n, t in theirs.state_dict().items()]
    ours.load_weights(state)  # strict
    assert {n: array.shape for n, array in flat(ours.parameters())} == {
        n: tuple(t.shape) for n, t in theirs.state_dict().items()
    }
    x = normal(2, *(7, 6, 6)[:rank], 16)
    wanted = theirs(torch.from_numpy(x))
    found = ours(mx.array(x))
    np.testing.assert_allclose(np.asarray(found), wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert ours._extra_repr() == theirs.extra_repr()
    wanted.square().sum().backward()
    nn = importlib.import_module("mlx.nn")
    slopes = nn.value_and_grad(ours, lambda x: ours(x).square().sum())(mx.array(x))[1]
    for name, slope in flat(slopes):
        his = theirs.get_parameter(name).grad.numpy()
        np.testing.assert_allclose(np.asarray(slope), his, rtol=1e-3, atol=1e-4, err_msg=name)


def test_modules_of_mlx_train_evaluate_and_refuse():
    mx = pytest.importorskip("mlx.core")
    import vecina.mlx as vm

    layer = vm.NeighborhoodAttention1D(16, 4, 3, is_causal=True, attn_drop=0.5, rel_pos_bias=True)
    assert layer.rpb.shape == (4, 5) and 0 < np.abs(np.asarray(layer.rpb)).max() < 0.2
    layer.proj = importlib.import_module("mlx.nn").Identity()
    x = mx.array(normal(1, 500, 16))
    whole = np.asarray(layer.eval()(x))
    np.testing.assert_array_equal(whole, np.asarray(layer(x)))
    dropped = np.asarray(layer.train()(x))
    # The first query sees itself alone: it keeps twice its value or nothing.
    for head, full in zip(dropped[0, 0].reshape(4, 4), whole[0, 0].reshape(4, 4)):
        assert np.allclose(head, 2 * full, atol=1e-5) or not head.any()
    assert abs((dropped * whole).sum() / np.square(whole).sum() - 1) < 0.2
    lengths = mx.array([[7]])
    with pytest.raises(NotImplementedError, match="attention dropout with lengths"):
        layer(x[:, :9], lengths)
    short = np.asarray(layer.eval()(x[:, :9], lengths))[:, :7]
    np.testing.assert_allclose(short, np.asarray(layer(x[:, :7])), rtol=1e-5, atol=1e-6)
    layer.set_dtype(mx.bfloat16)
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    with pytest.raises(ValueError, match="expects input shape"):
        layer(x[..., :8])
    with pytest.raises(ValueError, match="embed_dim 15"):
        vm.NeighborhoodAttention2D(15, 4, 3)
    with pytest.raises(ValueError, match="num_heads 4 is not divisible by num_kv_heads 3"):
        vm.NeighborhoodAttention3D(16, 4, 3, num_kv_heads=3)


@pytest.fixture
def real_natten_mlx(monkeypatch):
    """The package itself, which wants a Mac but has what it computes in MLX's own operations."""
    pytest.importorskip("mlx.core")
    if importlib.util.find_spec("natten_mlx") is None:
        pytest.skip("needs natten-mlx")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        real = importlib.import_module("natten_mlx")
    real.set_backend("pure")
    assert not real.na1d.__module__.startswith("vecina")
    return real


@pytest.mark.parametrize("heads_kv", [None, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weights_of_natten_mlx_itself(rank, heads_kv, real_natten_mlx):
    mx = importlib.import_module("mlx.core")
    port = importlib.import_module("vecina.compat.natten_mlx")
    vm = importlib.import_module("vecina.mlx")
    kind, arguments = f"NeighborhoodAttention{rank}D", dict(num_kv_heads=heads_kv, is_causal=True)
    x = mx.array(normal(2, *(7, 5, 4)[:rank], 16))
    theirs = getattr(real_natten_mlx, kind)(16, 4, 3, **arguments)
    for module in (vm, port):
        ours = getattr(module, kind)(16, 4, 3, **arguments)
        ours.load_weights(flat(theirs.parameters()))  # strict, as is the way back
        np.testing.assert_allclose(np.asarray(ours(x)), np.asarray(theirs(x)), rtol=1e-4, atol=1e-5)
        theirs.load_weights(flat(ours.parameters()))
    theirs = getattr(real_natten_mlx, kind)(16, 4, 3, stride=2, **arguments)
    ours = getattr(port, kind)(16, 4, 3, stride=2, **arguments)
    ours.load_weights(flat(theirs.parameters()))
    np.testing.assert_allclose(np.asarray(ours(x)), np.asarray(theirs(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlx", "numpy", "torch"])
def test_extras_of_natten_mlx_itself(kind, real_natten_mlx):
    """Heads first, on arrays of three frameworks; the reference is natten-mlx in MLX."""
    mx = importlib.import_module("mlx.core")
    make = dict(mlx=mx.array, numpy=np.array)
    if kind == "torch":
        make["torch"] = pytest.importorskip("torch").from_numpy
    path = "extras.allin1.functional"
    theirs = importlib.import_module(f"natten_mlx.{path}")
    ours = importlib.import_module(f"vecina.compat.natten_mlx.{path}_metal")
    assert ours.natten1dav is not theirs.natten1dav
    for rank, tokens in ((1, (9,)), (2, (7, 8))):
        query, key, value = (normal(2, 3, *tokens, 4) for _ in range(3))
        rpb, window = normal(3, *(5,) * rank), dict(kernel_size=3, dilation=2)
        def call(module, name, *arrays, to=mx.array):
            function = getattr(module, f"natten{rank}d{name}")
            found = function(*(None if a is None else to(a) for a in arrays), **window)
            assert isinstance(found, tuple) or type(found) is type(to(query))
            return [np.asarray(f) for f in (found if isinstance(found, tuple) else (found,))]

        for bias in (rpb, None):
            (wanted,) = call(theirs, "qkrpb", query, key, bias)
            (logits,) = call(ours, "qkrpb", query, key, bias, to=make[kind])
            np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
        weights = normal(*logits.shape)
        (wanted,) = call(theirs, "av", weights, value)
        (output,) = call(ours, "av", weights, value, to=make[kind])
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)
        # Their own derivatives, by mx.grad.
        for name, arrays, gradient in (("qkrpb", (query, key, rpb), weights),
                                       ("av", (weights, value), value)):  # fmt: skip
            function = getattr(theirs, f"natten{rank}d{name}")
            wanted = mx.grad(
                lambda *a: (function(*a, **window) * mx.array(gradient)).sum(),
                argnums=tuple(range(len(arrays))),
            )(*map(mx.array, arrays))
            found = call(ours, f"{name}_backward", gradient, *arrays, to=make[kind])
            for mine, his in zip(found, wanted, strict=True):
                np.testing.assert_allclose(mine, np.asarray(his), rtol=1e-4, atol=1e-4)
        if rank == 2:
            shifted = np.exp(call(theirs, "qkrpb", query, key, rpb)[0])
            (wanted,) = call(theirs, "av", shifted / shifted.sum(-1, keepdims=True), value)
            (found,) = call(ours, "_qkv_fused", query, key, value, rpb, to=make[kind])
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
            with pytest.raises(ValueError, match="equal along both axes"):
                ours.natten2dav(weights, value, (3, 5), 1)


def test_compat_and_windows_of_natten_mlx_itself(real_natten_mlx):
    mx = importlib.import_module("mlx.core")
    port = importlib.import_module("vecina.compat.natten_mlx")
    theirs = importlib.import_module("natten_mlx.compat")
    for version, name in (("0.10.0", "v014"), ("0.14.6", "v014"), ("0.15.2", "v015"),
                          ("0.16.0", "v017"), ("0.17.4", "v017"), ("0.18.0", "v020"),
                          ("1.0.0", "v020")):  # fmt: skip
        real, ours = theirs.for_version(version), port.compat.for_version(version)
        assert ours.__name__.endswith(f".{name}") and real.__name__.endswith(f".{name}")
        public = getattr(real, "__all__", theirs.for_version("0.15.2").__all__)
        assert set(public) <= set(dir(ours))
    with pytest.raises(ValueError, match="not_a_version"):
        port.compat.for_version("not_a_version")
    old, real = port.compat.for_version("0.15.1"), theirs.for_version("0.15.1")
    query, key = (mx.array(normal(1, 2, 7, 8, 4)) for _ in range(2))
    rpb = mx.array(normal(2, 5, 5))
    logits = old.natten2dqkrpb(query, key, rpb, 3, 2)
    wanted = real.natten2dqkrpb(query, key, rpb, 3, 2)
    np.testing.assert_allclose(np.asarray(logits), np.asarray(wanted), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(old.natten2dav(logits, key, 3, 2)),
        np.asarray(real.natten2dav(logits, key, 3, 2)), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    x = mx.array(normal(1, 4, 5, 6, 12))
    layer = old.NeighborhoodAttention3D(dim=12, kernel_size=3, num_heads=3, is_causal=True)
    wanted = port.NeighborhoodAttention3D(12, 3, 3, is_causal=True)
    wanted.load_weights(flat(layer.parameters()))
    np.testing.assert_array_equal(np.asarray(layer(x)), np.asarray(wanted(x)))
    for module in ("utils", "utils.window"):
        ours = importlib.import_module(f"vecina.compat.natten_mlx.{module}")
        real = importlib.import_module(f"natten_mlx.{module}")
        at = np.arange(11)
        for kernel, dilation in ((3, 1), (5, 2), (3, 3)):
            for mine, his in zip(ours.compute_window_start_end(at, 11, kernel, dilation),
                                 real.compute_window_start_end(at, 11, kernel, dilation)):
                np.testing.assert_array_equal(mine, his)
            np.testing.assert_array_equal(ours.compute_pb_start(at, 11, kernel, dilation),
                                          real.compute_pb_start(at, 11, kernel, dilation))


def test_large_arrays_of_jax_on_one_core():
    pytest.importorskip("jax")
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, numpy as np, vecina.jax as vj, vecina.numpy as vn
parts = [jax.random.normal(jax.random.key(i), (1, 100000, 2, 16)) for i in range(3)]
call = lambda *p: vj.na1d(*(2 * part for part in p), 3)
slope = jax.jit(jax.grad(lambda *p: call(*p).sum()))
for _ in range(3):
    slope(*parts).block_until_ready()
found = np.asarray(jax.jit(call)(*parts))
np.testing.assert_array_equal(found, vn.na1d(*(2 * np.asarray(part) for part in parts), 3))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


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
