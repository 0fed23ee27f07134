# SPDX-License-Identifier: MIT
"""Samples of different extents in one tensor: what each gives alone, gradients, compilation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import vecina.numpy as vn  # noqa: E402
import vecina.torch as vt  # noqa: E402

#: extents of the samples, and the window
PACKED = {
    "1d": ([[9], [5], [12]], dict(kernel_size=4, dilation=1, is_causal=True)),
    "2d": ([[6, 4], [5, 8]], dict(kernel_size=(3, 4), stride=(2, 1))),
    "3d": ([[3, 4, 2], [2, 2, 5], [3, 3, 3]], dict(kernel_size=2)),
}
SCALE = dict(scale=0.7)


def tensors(*shapes, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=requires_grad)
            for shape in shapes]  # fmt: skip


def problem(name, **more):
    extents, window = PACKED[name]
    tokens, samples = sum(int(np.prod(e)) for e in extents), len(extents)
    inputs = tensors(
        (1, tokens, 4, 3), (1, tokens, 2, 3), (1, tokens, 2, 5), (samples, 2, 2, 3),
        (samples, 2, 2, 5), **more,
    )  # fmt: skip
    return inputs, torch.tensor(extents), window


def one_by_one(inputs, lengths, window):
    """Each sample by a call of its own."""
    outputs, lses, first = [], [], 0
    for sample, extents in enumerate(lengths.tolist()):
        count = int(np.prod(extents))
        own = [t[:, first : first + count].unflatten(1, extents) for t in inputs[:3]]
        more = [t[sample : sample + 1] for t in inputs[3:]]
        output, lse = vt.neighborhood_attention(
            *own, **window, **SCALE, additional_keys=more[0], additional_values=more[1],
            return_lse=True,
        )  # fmt: skip
        outputs.append(output.reshape(1, count, *output.shape[-2:]))
        lses.append(lse.reshape(1, count, -1))
        first += count
    return torch.cat(outputs, 1), torch.cat(lses, 1)


def call(inputs, lengths, window, **more):
    return vt.neighborhood_attention_varlen(
        *inputs[:3], lengths, **window, **SCALE, additional_keys=inputs[3],
        additional_values=inputs[4], return_lse=True, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_each_sample_as_alone(name, index):
    inputs, lengths, window = problem(name)
    wanted = one_by_one(inputs, lengths, window)
    lengths = lengths.to(index)
    for _ in range(3):  # also by what is remembered
        torch.testing.assert_close(call(inputs, lengths, window), wanted)
    flat = [t.numpy() for t in inputs]
    output, lse = vn.neighborhood_attention_varlen(
        *flat[:3], lengths.numpy(), **window, **SCALE, additional_keys=flat[3],
        additional_values=flat[4], return_lse=True,
    )  # fmt: skip
    np.testing.assert_allclose(output, wanted[0], atol=1e-12)
    np.testing.assert_allclose(lse, wanted[1], atol=1e-12)


@pytest.mark.parametrize("name", PACKED)
def test_gradients(name):
    inputs, lengths, window = problem(name, requires_grad=True)

    def loss(result):
        return result[0].square().sum() + result[1].sin().sum()

    wanted = torch.autograd.grad(loss(one_by_one(inputs, lengths, window)), inputs)
    result = call(inputs, lengths, window)
    torch.testing.assert_close(torch.autograd.grad(loss(result), inputs), wanted)
    grads = vn.neighborhood_attention_varlen_backward(
        *(t.detach().numpy() for t in inputs[:3]), *(t.detach().numpy() for t in result),
        2 * result[0].detach().numpy(), lengths.numpy(), **window, **SCALE,
        grad_lse=result[1].detach().cos().numpy(), additional_keys=inputs[3].detach().numpy(),
        additional_values=inputs[4].detach().numpy(),
    )  # fmt: skip
    for mine, theirs in zip(grads.values(), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-10)


def test_attention_of_other_lengths():
    keys, queries = torch.tensor([5, 2, 7]), torch.tensor([3, 6, 1])
    query, key, value = tensors((1, 10, 4, 3), (1, 14, 2, 3), (1, 14, 2, 3), requires_grad=True)
    for is_causal in (False, True):
        parts = [
            vt.attention(q, k, v, is_causal, return_lse=True)
            for q, k, v in zip(
                query.split(queries.tolist(), 1), key.split(keys.tolist(), 1),
                value.split(keys.tolist(), 1),
            )
        ]  # fmt: skip
        wanted = [torch.cat([part[i] for part in parts], 1) for i in (0, 1)]
        found = vt.attention_varlen(
            query, key, value, keys, is_causal, query_lengths=queries, return_lse=True
        )
        torch.testing.assert_close(list(found), wanted)
        leaves = (query, key, value)
        torch.testing.assert_close(
            torch.autograd.grad(found[0].square().sum(), leaves),
            torch.autograd.grad(wanted[0].square().sum(), leaves),
        )
        flat = [t.detach().numpy() for t in leaves]
        output = vn.attention_varlen(*flat, keys.numpy(), is_causal, query_lengths=queries.numpy())
        np.testing.assert_allclose(output, wanted[0].detach(), atol=1e-12)


def test_compiles_with_the_largest_lengths():
    inputs, lengths, window = problem("2d", dtype=torch.float32, requires_grad=True)

    def function(inputs, lengths, max_lengths):
        return call(inputs, lengths, window, max_lengths=max_lengths)[0] * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = compiled(inputs, lengths, 8)
    wanted = function(inputs, lengths, None)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs)
    )


@pytest.mark.parametrize(
    "lengths, more, words",
    [
        ([[9], [5]], {}, r"the problem needs \[1, 14, 4, 3\]"),
        ([[9], [5], [2]], {}, "kernel_size"),
        ([], {}, "lengths"),
        ([[9, 1, 1, 1]], {}, "4 columns"),
        ([[9], [5], [12]], dict(max_lengths=11), "12"),
    ],
)
def test_what_does_not_fit(lengths, more, words):
    inputs, _, window = problem("1d")
    with pytest.raises(ValueError, match=words):
        call(inputs, torch.tensor(lengths, dtype=torch.int64), window, **more)
