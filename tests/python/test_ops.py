# SPDX-License-Identifier: MIT
"""Every operation, rank and option: gradients in f64, PyTorch's checks of its ops, compilation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import vecina.torch as vt  # noqa: E402

#: tokens and window of each rank
TOKENS = {1: (9,), 2: (5, 6), 3: (4, 4, 5)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}
#: option -> what it changes in a call
OPTIONS = {
    "plain": {},
    "even window": dict(kernel_size=2),
    "window of the axis": dict(whole=True),
    "dilation": dict(kernel_size=2, dilation=2),
    "stride": dict(stride=2),
    "output stride": dict(output_stride=2),
    "causal": dict(is_causal=True),
    "causal, stride": dict(is_causal=True, stride=2),
    "scale": dict(scale=0.3),
    "groups": dict(heads=4, head_dim_value=2),
    "additional": dict(additional=2),
    "bias": dict(bias=True),
    "lengths": dict(lengths=True),
    "all": dict(
        heads=4, head_dim_value=2, additional=2, bias=True, dilation=2, kernel_size=2, scale=0.3,
        is_causal=True,
    ),
}  # fmt: skip
WINDOW = ("kernel_size", "stride", "dilation", "is_causal", "output_stride")


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def window_of(rank, option):
    given = dict(kernel_size=KERNEL[rank]) | {k: v for k, v in option.items() if k in WINDOW}
    if option.get("whole"):
        given["kernel_size"] = TOKENS[rank]
    return given


def per_axis(value, rank):
    return (value,) * rank if isinstance(value, int) else value


def neighborhoods(rank, option):
    """(tensors, call): output and lse of na1d, na2d or na3d."""
    window, tokens = window_of(rank, option), TOKENS[rank]
    heads, dim = option.get("heads", 2), option.get("head_dim_value", 3)
    tensors = [randn(2, *tokens, heads, 3), randn(2, *tokens, 2, 3, seed=1)]
    tensors.append(randn(2, *tokens, 2, dim, seed=2))
    names = []
    if "additional" in option:
        names += ["additional_keys", "additional_values"]
        tensors += [randn(2, 2, 2, 3, seed=3), randn(2, 2, 2, dim, seed=4)]
    if "bias" in option:
        names.append("bias")
        sizes = per_axis(window["kernel_size"], rank)
        tensors.append(randn(heads, *(2 * k - 1 for k in sizes)))
    keywords = dict(window, return_lse=True, scale=option.get("scale"))
    if "lengths" in option:
        keywords["lengths"] = torch.tensor([tokens, [n - 1 for n in tokens]])
    function = getattr(vt, f"na{rank}d")

    def call(query, key, value, *more):
        output, lse = function(query, key, value, **keywords, **dict(zip(names, more)))
        return output, lse.nan_to_num(neginf=0.0)  # -inf beyond the length of a sample

    return tensors, call


def attention(is_causal, additional, scale=None):
    tensors = [randn(2, 4, 4, 3), randn(2, 6, 2, 3), randn(2, 6, 2, 2)]
    more = [randn(2, 2, 2, 3, seed=3), randn(2, 2, 2, 2, seed=4)] if additional else []

    def call(query, key, value, keys=None, values=None):
        return vt.attention(
            query, key, value, is_causal, scale, additional_keys=keys, additional_values=values,
            return_lse=True,
        )  # fmt: skip

    return tensors + more, call


def merge(count):
    tensors = [randn(2, 3, 2, 4, seed=i) for i in range(count)]
    tensors += [randn(2, 3, 2, seed=i) for i in range(count)]
    return tensors, lambda *t: vt.merge_attentions(t[:count], t[count:])


def halves(rank, option, half):
    window, tokens = window_of(rank, option), TOKENS[rank]
    window["right_aligned"] = rank == 2
    scale = dict(scale=option["scale"]) if "scale" in option else {}
    first = [randn(1, *tokens, 4, 3), randn(1, *tokens, 2, 3, seed=1)]
    more = [randn(1, 2, 2, 3, seed=2)]
    sizes = per_axis(window["kernel_size"], rank)
    if half == "qk":
        bias = randn(4, *(2 * k - 1 for k in sizes))

        def call(query, key, keys, bias):
            logits = vt.qk(query, key, **window, **scale, additional_keys=keys, bias=bias)
            return logits.clamp(min=-50.0)  # -inf has no finite difference

        return [*first, *more, bias], call
    steps = per_axis(window.get("output_stride", 1), rank)
    queries = [-(-n // s) for n, s in zip(tokens, steps)]
    attention = randn(1, *queries, 4, int(np.prod(sizes)) + 2)
    return [attention, first[1], *more], lambda a, v, more: vt.av(
        a, v, **window, additional_values=more
    )


def packed(rank, option):
    window = window_of(rank, option)
    sizes = per_axis(window["kernel_size"], rank)
    least = [k * window.get("dilation", 1) for k in sizes]
    extents = [TOKENS[rank], [max(n - 1, m) for n, m in zip(TOKENS[rank], least)]]
    tokens = int(sum(np.prod(e) for e in extents))
    lengths, longest = torch.tensor(extents), list(TOKENS[rank])
    tensors = [randn(1, tokens, 4, 3), randn(1, tokens, 2, 3), randn(1, tokens, 2, 2)]
    tensors += [randn(2, 2, 2, 3), randn(2, 2, 2, 2), randn(4, *(2 * k - 1 for k in sizes))]

    def call(query, key, value, keys, values, bias):
        return vt.neighborhood_attention_varlen(
            query, key, value, lengths, **window, scale=option.get("scale"), max_lengths=longest,
            additional_keys=keys, additional_values=values, bias=bias, return_lse=True,
        )  # fmt: skip

    return tensors, call


def packed_attention(is_causal, additional, scale=None):
    keys, queries = torch.tensor([5, 2]), torch.tensor([3, 4])
    tensors = [randn(1, 7, 4, 3), randn(1, 7, 2, 3, seed=1), randn(1, 7, 2, 2)]
    more = [randn(2, 2, 2, 3, seed=3), randn(2, 2, 2, 2, seed=4)] if additional else []

    def call(query, key, value, more_keys=None, more_values=None):
        return vt.attention_varlen(
            query, key, value, keys, is_causal, scale, query_lengths=queries, max_length=5,
            max_query_length=4, additional_keys=more_keys, additional_values=more_values,
            return_lse=True,
        )  # fmt: skip

    return tensors + more, call


CASES = {
    f"na{rank}d {name}": neighborhoods(rank, option)
    for rank in TOKENS for name, option in OPTIONS.items()
}  # fmt: skip
#: Everything that is an operation of its own.
OTHERS = {
    "attention": attention(False, False),
    "attention scale": attention(False, True, scale=0.3),
    "attention causal, additional": attention(True, True),
    "merge of 2": merge(2),
    "merge of 3": merge(3),
    "attention_varlen": packed_attention(False, False),
    "attention_varlen scale": packed_attention(False, True, scale=0.3),
    "attention_varlen causal, additional": packed_attention(True, True),
    **{f"na{rank}d_varlen plain": packed(rank, {}) for rank in TOKENS},
}
#: Options that the two halves and packed samples have too; groups, bias and additional tokens are
#: in every case of theirs.
SHARED = (
    "plain", "even window", "window of the axis", "dilation", "stride", "causal", "causal, stride",
)  # fmt: skip
HALVES = {
    f"{half} {rank}d {name}": halves(rank, OPTIONS[name], half)
    for half in ("qk", "av") for rank in TOKENS
    for name in (*SHARED, "output stride", *(("scale",) if half == "qk" else ()))
}  # fmt: skip
PACKED = {
    f"na{rank}d_varlen {name}": packed(rank, OPTIONS[name])
    for rank in TOKENS for name in (*SHARED[1:], "scale")
}  # fmt: skip
EVERY = {**CASES, **OTHERS, **HALVES, **PACKED}
FEW = {
    name: case for name, case in EVERY.items()
    if name in OTHERS or name.endswith((" all", "d lengths")) or name in ("qk 3d causal", "av 2d causal")
}  # fmt: skip


def leaves_of(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name):
    tensors, call = EVERY[name]
    assert torch.autograd.gradcheck(call, leaves_of(tensors), fast_mode=True)


def loss_of(found):
    parts = found if isinstance(found, tuple) else (found,)
    return sum(part.square().sum() for part in parts)


class Recorder(TorchDispatchMode):
    """Keeps the first call of each of vecina's ops."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "vecina":
            self.calls.setdefault(op, args)
        return op(*args, **(kwargs or {}))


def as_leaves(args, is_leaf):
    def leaf(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().clone().requires_grad_(is_leaf)
        return [leaf(v) for v in value] if isinstance(value, list) else value

    return tuple(leaf(value) for value in args)


@pytest.mark.parametrize("name", FEW)
def test_opcheck(name):
    tensors, call = FEW[name]
    with Recorder() as recorder:
        loss_of(call(*leaves_of(tensors))).backward()
    names = {str(op) for op in recorder.calls}
    assert any("backward" in op for op in names) and len(names) >= 2
    for op, args in recorder.calls.items():
        torch.library.opcheck(op, as_leaves(args, "backward" not in str(op)))


def test_every_op_was_looked_at():
    """vecina's ops are those of the cases above, and the tables of those composed for devices."""
    torch.library.opcheck(torch.ops.vecina.axis_tables.default, (9, 3, 1, 2, True, 1, False))
    found = {
        schema.name for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("vecina::")
    }  # fmt: skip
    halves = {"forward", "merge", "qk", "av"}
    named = {"axis_tables", *halves, *(f"{name}_backward" for name in halves - {"forward"}), "backward"}
    assert found == {f"vecina::{name}" for name in named}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", FEW)
def test_compiles_whole(name, dynamic):
    tensors, call = FEW[name]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    leaves, again = leaves_of(tensors), leaves_of(tensors)
    found, wanted = compiled(*leaves), call(*again)
    torch.testing.assert_close(found, wanted)
    loss_of(found).backward()
    loss_of(wanted).backward()
    for mine, theirs in zip(leaves, again):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_compiles_to_code():
    """With the compiler's own code around the op, where aot_eager above has PyTorch's."""
    tensors, call = FEW["na2d all"]
    torch.compiler.reset()

    def around(*inputs):
        return sum(part.sin().sum() for part in call(*(t * 2 for t in inputs)))

    compiled = torch.compile(around, fullgraph=True)
    leaves, again = leaves_of(tensors), leaves_of(tensors)
    found, wanted = compiled(*leaves), around(*again)
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    for mine, theirs in zip(leaves, again):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_results_are_the_same_bits_for_any_number_of_threads():
    import vecina

    tensors, call = neighborhoods(2, dict(OPTIONS["all"], kernel_size=2))
    tensors = [t.repeat(3, *(1 for _ in t.shape[1:])) if i < 5 else t for i, t in enumerate(tensors)]
    results = []
    try:
        for threads in (1, 2, 3, 2):
            vecina.set_num_threads(threads)
            leaves = leaves_of(tensors)
            output, lse = call(*leaves)
            (output.square().sum() + lse.sum()).backward()
            results.append([output, lse, *(leaf.grad for leaf in leaves)])
    finally:
        vecina.set_num_threads(0)
    for again in results[1:]:
        for mine, first in zip(again, results[0]):
            assert torch.equal(mine, first)
