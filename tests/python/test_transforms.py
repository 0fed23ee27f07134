# SPDX-License-Identifier: MIT
"""vecina.torch under PyTorch's transforms: vmap, export, checkpointing, FLOP counting."""

import importlib.util
import warnings

import pytest

torch = pytest.importorskip("torch")
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import vecina.torch as vt  # noqa: E402


def leaves(*shape, count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)
    ]


def test_vmap_is_one_by_one():
    def call(query, key, value):
        return vt.na1d(query, key, value, 3, is_causal=True, return_lse=True)

    tensors = leaves(4, 2, 7, 2, 4)
    again = [t.detach().clone().requires_grad_() for t in tensors]
    output, lse = torch.vmap(call)(*tensors)
    singles = [call(*parts) for parts in zip(*again)]
    torch.testing.assert_close(output, torch.stack([s[0] for s in singles]))
    torch.testing.assert_close(lse, torch.stack([s[1] for s in singles]))
    (output.square().sum() + lse.sum()).backward()
    sum(s[0].square().sum() + s[1].sum() for s in singles).backward()
    for mine, his in zip(tensors, again):
        torch.testing.assert_close(mine.grad, his.grad)
    # One key and value for all queries, another axis of the query.
    query, key, value = tensors
    found = torch.vmap(lambda q: call(q, key[0], value[0])[0], in_dims=1, out_dims=1)(
        query.movedim(0, 1)
    )
    torch.testing.assert_close(found[:, 3], call(query[3], key[0], value[0])[0])


@pytest.mark.parametrize("name", ["attention", "qk", "av", "merge", "module"])
def test_vmap_of_every_function(name):
    query, key, value = leaves(4, 2, 7, 2, 4)
    weights, lses = torch.randn(4, 2, 7, 2, 3), torch.randn(2, 4, 2, 7, 2)
    layer = vt.NeighborhoodAttention1D(8, 2, 3, rel_pos_bias=True)
    call, inputs = {
        "attention": (lambda q, k, v: vt.attention(q, k, v, True), (query, key, value)),
        "qk": (lambda q, k: vt.qk(q, k, 3, dilation=2), (query, key)),
        "av": (lambda w, v: vt.av(w, v, 3, stride=2), (weights.requires_grad_(), value)),
        "merge": (lambda a, b, c, d: vt.merge_attentions([a, b], [c, d])[0],
                  (query, key, *(lse.requires_grad_() for lse in lses.unbind()))),
        "module": (layer, (query.detach().flatten(-2).requires_grad_(),)),
    }[name]  # fmt: skip
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    again = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    found, wanted = torch.vmap(call)(*inputs), torch.stack([call(*p) for p in zip(*again)])
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for mine, his in zip(inputs, again):
        torch.testing.assert_close(mine.grad, his.grad)


QUERY = torch.randn(1, 6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LENGTHS = torch.tensor([[2], [4]])
#: name -> a function of one tensor that goes to an op
OF_ONE = {
    "na1d": lambda x: vt.na1d(QUERY, QUERY, x, 3),
    "na1d with lse": lambda x: vt.na1d(x, QUERY, QUERY, 3, return_lse=True)[1],
    "attention": lambda x: vt.attention(QUERY, x, QUERY),
    "varlen": lambda x: vt.neighborhood_attention_varlen(QUERY, x, x, LENGTHS, 2, max_lengths=4),
    "attention_varlen": lambda x: vt.attention_varlen(x, x, x, LENGTHS[:, 0], max_length=4),
    "merge": lambda x: vt.merge_attentions([x, QUERY], [x.sum(-1), QUERY.sum(-1)])[0],
    "op": lambda x: torch.ops.vecina.qk(
        QUERY, x, None, None, [3], [1], [1], [0], [1], False, None, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ONE)
def test_forward_derivatives_say_no(name):
    call, forward_ad = OF_ONE[name], torch.autograd.forward_ad
    jvp = torch.func.jvp
    says_no = pytest.raises(NotImplementedError, match="forward-mode derivatives: not yet")
    for derive in (
        lambda: jvp(call, (QUERY,), (QUERY,)),
        lambda: jvp(lambda x: call(2 * x).sum(), (QUERY,), (QUERY,)),
        lambda: torch.func.jacfwd(call)(QUERY),
        lambda: jvp(torch.func.grad(lambda x: call(x).sum()), (QUERY,), (QUERY,)),
    ):
        with says_no:
            derive()
    wanted = call(QUERY)
    with forward_ad.dual_level():
        for leaf in (QUERY, QUERY.clone().requires_grad_()):
            with says_no:
                call(forward_ad.make_dual(leaf, QUERY))
        assert torch.equal(call(QUERY), wanted)  # without tangents
    assert torch.equal(call(QUERY), wanted)


def test_forward_derivatives_of_gradients_say_no():
    leaf, forward_ad = QUERY.clone().requires_grad_(), torch.autograd.forward_ad
    for output in (
        vt.na1d(leaf, leaf, leaf, 3),
        vt.qk(leaf, leaf, 3),
        vt.merge_attentions([leaf, leaf], [leaf.sum(-1), leaf.sum(-1)])[0],
    ):
        with forward_ad.dual_level():
            slope = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
            with pytest.raises(NotImplementedError, match="forward-mode derivatives: not yet"):
                torch.autograd.grad(output, leaf, slope)


@pytest.mark.parametrize("name", OF_ONE)
def test_func_grad(name):
    call, grad = OF_ONE[name], torch.func.grad
    leaf = QUERY.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(call(leaf).square().sum(), leaf)

    def loss(x):
        return call(x).square().sum()

    torch.testing.assert_close(grad(loss)(QUERY), wanted)
    with pytest.raises(NotImplementedError, match="gradients of gradients: not yet"):
        grad(lambda x: grad(loss)(x).square().sum())(QUERY)
    if name in ("na1d", "attention"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the gradients are one call each
            found = torch.vmap(grad(loss))(torch.stack([QUERY, QUERY]))
        torch.testing.assert_close(found, torch.stack([wanted, wanted]))


@pytest.mark.parametrize("name", ["na1d", "bias", "lse", "attention", "varlen", "module"])
def test_gradients_of_gradients_say_no(name):
    """What asks for them may be no tensor that the gradient came with: a penalty on it."""
    leaf, other = QUERY.clone().requires_grad_(), QUERY.clone().requires_grad_()
    layer = vt.NeighborhoodAttention1D(4, 1, 3).double()
    call = {
        "na1d": lambda x: vt.na1d(x, other, other, 3),
        "bias": lambda x: vt.na1d(x, other, other, 3, bias=x.new_zeros(2, 5)),
        "lse": lambda x: vt.na1d(x, other, other, 3, return_lse=True)[1],
        "attention": lambda x: vt.attention(x, other, other),
        "varlen": lambda x: vt.neighborhood_attention_varlen(x, other, other, LENGTHS, 2),
        "module": lambda x: layer(x[:, :, 0]),
    }[name]
    (plain,) = torch.autograd.grad(call(leaf).sum(), leaf)
    (gradient,) = torch.autograd.grad(call(leaf).sum(), leaf, create_graph=True)
    assert torch.equal(gradient, plain) and gradient.requires_grad
    with pytest.raises(NotImplementedError, match="gradients of gradients: not yet"):
        gradient.square().sum().backward()


def test_vmap_over_a_bias_says_no():
    query, key, value = leaves(1, 7, 2, 4)
    bias = torch.zeros(3, 2, 5)
    call = torch.vmap(lambda b: vt.na1d(query, key, value, 3, bias=b, backend="reference"))
    with pytest.raises(NotImplementedError, match="vmap over a bias"):
        call(bias)


class Net(torch.nn.Module):
    """Two layers of attention, the second without a bias and with dilation."""

    def __init__(self, **keywords):
        super().__init__()
        self.first = vt.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True, **keywords)
        self.second = vt.NeighborhoodAttention2D(8, 2, (3, 2), dilation=2, **keywords)

    def forward(self, x):
        return self.second(x + self.first(x))


def ops_of_vecina(program):
    return [node for node in program.graph.nodes if "vecina" in str(node.target)]


@pytest.mark.parametrize("decomposed", [False, True])
def test_export(decomposed):
    net, x = Net().eval(), torch.randn(2, 6, 7, 8)
    with torch.no_grad():
        if decomposed:
            with vt.decompose():
                program = torch.export.export(net, (x,))
        else:
            program = torch.export.export(net, (x,))
        assert len(ops_of_vecina(program)) == (0 if decomposed else 2)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


def test_export_with_dynamic_shapes():
    net, x = Net().eval(), torch.randn(2, 6, 7, 8)
    batch, rows = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("rows", min=6, max=64)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch, 1: rows},))
        for other in (torch.randn(1, 9, 7, 8), torch.randn(5, 6, 7, 8)):
            torch.testing.assert_close(program.module()(other), net(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace(grad):
    def halves(query, key, value):
        window = dict(kernel_size=3, is_causal=True)
        return vt.av(vt.qk(query, key, **window).softmax(-1), value, **window)

    x, other = torch.randn(2, 2, 6, 7, 8).unbind()
    tensors, others = torch.randn(2, 3, 1, 9, 2, 4).unbind()
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Net().eval()
        for call, inputs, new in (
            (net, (x,), (other,)), (halves, tensors.unbind(), others.unbind()),
        ):  # fmt: skip
            traced = torch.jit.trace(call, inputs)
            torch.testing.assert_close(traced(*new), call(*new))


@pytest.mark.skipif(
    not all(importlib.util.find_spec(m) for m in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
def test_onnx(tmp_path):
    import onnxruntime

    net, x = Net().eval(), torch.randn(2, 6, 7, 8)
    path = tmp_path / "net.onnx"
    with torch.no_grad(), vt.decompose(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-5)


def test_decompose_is_the_same_and_ends():
    query, key, value = leaves(1, 6, 4, 4, dtype=torch.float64)
    more = leaves(1, 2, 4, 4, count=2, dtype=torch.float64)
    extra = dict(additional_keys=more[0], additional_values=more[1], return_lse=True)
    for call in (
        lambda: vt.na1d(query, key, value, 3, is_causal=True, output_stride=2, **extra),
        lambda: vt.attention(query[:, :5], key[:, :, :2], value[:, :, :2], return_lse=True),
        lambda: vt.attention(query[:, :5], key, value, **extra),
    ):
        wanted = call()
        with vt.decompose():
            found = call()
        for mine, his in zip(found, wanted):
            torch.testing.assert_close(mine, his)
        # Only the composed one has second derivatives.
        (slope,) = torch.autograd.grad(found[0].square().sum(), query, create_graph=True)
        slope.square().sum().backward()
    with vt.decompose():
        with pytest.raises(NotImplementedError, match="lengths inside decompose"):
            vt.na1d(query, key, value, 3, lengths=torch.tensor([[6]]))
        with pytest.raises(NotImplementedError, match="causal attention"):
            vt.attention(query, key, value, True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    torch.manual_seed(0)
    layer = vt.NeighborhoodAttention1D(8, 2, 3)
    x, again = torch.randn(2, 9, 8, requires_grad=True), None
    layer(x).square().sum().backward()
    wanted = [p.grad.clone() for p in [x, *layer.parameters()]]
    layer.zero_grad()
    again = x.detach().requires_grad_()
    checkpoint(layer, again, use_reentrant=use_reentrant).square().sum().backward()
    for mine, his in zip([again, *layer.parameters()], wanted):
        torch.testing.assert_close(mine.grad, his)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype):
    torch.manual_seed(0)
    layer = vt.NeighborhoodAttention1D(8, 2, 3)
    x = torch.randn(2, 9, 8)
    layer(x).square().sum().backward()
    wanted = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        output = layer(x)
    assert output.dtype == dtype
    output.float().square().sum().backward()
    for parameter, his in zip(layer.parameters(), wanted):
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - his).norm() / his.norm()
        assert error < 0.05


@pytest.mark.parametrize("grad", [False, True])
def test_meta_tensors_have_shapes(grad):
    query = torch.zeros(2, 6, 7, 4, 8, device="meta", requires_grad=grad)
    key = torch.zeros(2, 6, 7, 2, 8, device="meta")
    output, lse = vt.na2d(query, key, key[..., :3], 3, output_stride=2, return_lse=True)
    assert output.is_meta and output.shape == (2, 3, 4, 4, 3) and lse.shape == (2, 3, 4, 4)
    assert output.requires_grad == grad
    with vt.decompose():
        assert vt.na2d(query, key, key[..., :3], 3).shape == (2, 6, 7, 4, 3)
    flat = [t.flatten(1, 2) for t in (query, key, key)]
    assert vt.attention(*flat).shape == flat[0].shape
    weights = vt.qk(query, key, 3)
    assert weights.is_meta and weights.shape == (2, 6, 7, 4, 9)
    assert vt.av(weights, key, 3).shape == query.shape
    for name, wrong in (("is_causal", 1), ("is_causal", (2, False)), ("kernel_size", True),
                        ("stride", (1, True)), ("output_stride", True)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is .*needed"):
            vt.na2d(query, key, key, **{"kernel_size": 3, name: wrong})
        with FakeTensorMode(), pytest.raises(ValueError, match=f"{name} is .*needed"):
            vt.qk(*torch.zeros(2, 1, 6, 7, 2, 8), **{"kernel_size": 3, name: wrong})
    with pytest.raises(ValueError, match="is_causal is 2"):
        vt.attention(*flat, is_causal=2)
    net = Net().to("meta")
    assert net(torch.zeros(1, 6, 7, 8, device="meta")).shape == (1, 6, 7, 8)


def test_flops():
    tensors = leaves(1, 8, 8, 2, 4)
    with FlopCounterMode(display=False) as counter:
        vt.na2d(*tensors, (3, 5), return_lse=True)[0].sum().backward()
    forward = 2 * 64 * 2 * 15 * (4 + 4)  # products x tokens x heads x window x dims
    assert counter.get_total_flops() == forward + forward * 5 // 2
    query, key = torch.randn(1, 5, 2, 4), torch.randn(1, 9, 2, 4)
    value, more = torch.randn(1, 9, 2, 3), torch.randn(1, 2, 2, 4)
    with FlopCounterMode(display=False) as counter:
        vt.attention(query, key, value, additional_keys=more, additional_values=more[..., :3])
        vt.na1d(key, key, key, 3, output_stride=2)
    assert counter.get_total_flops() == 2 * 5 * 2 * 11 * 7 + 2 * 5 * 2 * 3 * 8


@pytest.mark.parametrize("run", [
    lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
    lambda f, x: make_fx(f, tracing_mode="symbolic")(x)(x),
    lambda f, x: torch.func.grad(lambda q: f(q).sum())(x),
], ids=["compile", "make_fx", "func.grad"])  # fmt: skip
def test_transforms_take_meta_tensors(run):
    query = torch.zeros(2, 8, 4, 4, device="meta")
    assert run(lambda q: vt.na1d(q, q, q, 3), query).shape == query.shape


def test_batches_of_gradients():
    query = torch.randn(1, 9, 2, 4, requires_grad=True)
    output = vt.na1d(query, query, query, 3)
    batch = torch.randn(3, *output.shape)
    found, = torch.autograd.grad(output, query, batch, is_grads_batched=True, retain_graph=True)
    for one, grad_output in zip(found, batch):
        expected, = torch.autograd.grad(output, query, grad_output, retain_graph=True)
        assert torch.equal(one, expected)
