# SPDX-License-Identifier: MIT
"""Random calls with every argument: values and gradients are those of the reference backend."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vecina.numpy as vn

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
try:
    import ml_dtypes

    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None
    del TOLERANCE["bfloat16"]

#: Of all kinds together; `./dev test --full=check` takes 2000.
EXAMPLES = int(os.environ.get("VECINA_EXAMPLES", "420"))


class Arrays:
    """Random arrays of one dtype."""

    def __init__(self, draw):
        self.name = draw(st.sampled_from(sorted(TOLERANCE)))
        self.dtype = BFLOAT16 if self.name == "bfloat16" else np.dtype(self.name)
        self.wide = np.float64 if self.name == "float64" else np.float32  # of lse and bias
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        # Views of a larger array, as those of a packed qkv; the last dimension is contiguous.
        self.is_view = draw(st.booleans())

    def __call__(self, *shape, wide=False):
        dtype = self.wide if wide else self.dtype
        if not self.is_view or wide:
            return self.rng.standard_normal(shape).astype(dtype)
        return self.rng.standard_normal((*shape[:-1], 2, shape[-1])).astype(dtype)[..., 1, :]


@st.composite
def windows(draw, strides=True):
    """(tokens, keywords) of one to three axes."""
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
        tokens = kernel * dilation + draw(st.integers(0, 5 if len(axes) < 2 else 2))
        stride = draw(st.integers(1, kernel)) if draw(st.booleans()) else 1
        step = draw(st.integers(1, 3)) if strides and stride == 1 else 1
        axes.append((tokens, kernel, dilation, stride, step, draw(st.booleans())))
    tokens, kernel, dilation, stride, step, causal = map(list, zip(*axes))
    keywords = dict(kernel_size=kernel, stride=stride, dilation=dilation, is_causal=causal)
    if strides:
        keywords["output_stride"] = step
    if len(set(kernel)) == 1 and draw(st.booleans()):
        keywords["kernel_size"] = kernel[0]
    return tokens, keywords


@st.composite
def sizes(draw):
    """(heads, heads_kv, head_dim, head_dim_value, additional tokens)."""
    heads_kv = draw(st.integers(1, 2))
    dims = st.sampled_from([1, 3, 4, 8, 12, 16, 20])
    heads = heads_kv * draw(st.integers(1, 3))
    return heads, heads_kv, draw(dims), draw(dims), draw(st.integers(0, 3))


def more_of(arrays, samples, size, keywords):
    if size[4]:
        keywords["additional_keys"] = arrays(samples, size[4], size[1], size[2])
        keywords["additional_values"] = arrays(samples, size[4], size[1], size[3])


def bias_of(draw, arrays, heads, window, rank, keywords):
    if draw(st.booleans()):
        kernel = window["kernel_size"]
        kernel = [kernel] * rank if isinstance(kernel, int) else kernel
        keywords["bias"] = arrays(heads, *(2 * k - 1 for k in kernel), wide=True)


def scales(draw):
    return dict(scale=draw(st.sampled_from([None, 0.0, 0.7])))


def both_ways(forward, backward, arrays, tensors, positional=(), **keywords):
    """A function of the backend: output, lse and every gradient by name."""
    output, lse = forward(*tensors, *positional, return_lse=True, backend="reference", **keywords)
    grad_output, grad_lse = arrays(*output.shape), arrays(*lse.shape, wide=True)

    def run(backend):
        found = forward(*tensors, *positional, return_lse=True, backend=backend, **keywords)
        gradients = backward(
            *tensors, output, lse, grad_output, *positional, grad_lse=grad_lse, backend=backend,
            **keywords,
        )  # fmt: skip
        return dict(output=found[0], lse=found[1], **gradients)

    return run


@st.composite
def neighborhoods(draw, padded=False):
    arrays, (tokens, window), size = Arrays(draw), draw(windows()), draw(sizes())
    heads, heads_kv, dim, dim_value, _ = size
    batch = draw(st.integers(1, 2))
    keywords = dict(window, **scales(draw))
    more_of(arrays, batch, size, keywords)
    bias_of(draw, arrays, heads, window, len(tokens), keywords)
    if padded:
        kernel = window["kernel_size"]
        kernel = [kernel] * len(tokens) if isinstance(kernel, int) else kernel
        least = [k * d for k, d in zip(kernel, window["dilation"])]
        lengths = [[draw(st.integers(a, b)) for a, b in zip(least, tokens)] for _ in range(batch)]
        keywords["lengths"] = np.array(lengths, draw(st.sampled_from(["int32", "int64"])))
    tensors = (
        arrays(batch, *tokens, heads, dim),
        arrays(batch, *tokens, heads_kv, dim),
        arrays(batch, *tokens, heads_kv, dim_value),
    )
    return arrays, both_ways(
        vn.neighborhood_attention, vn.neighborhood_attention_backward, arrays, tensors, **keywords
    )


@st.composite
def packed(draw):
    arrays, (tokens, window), size = Arrays(draw), draw(windows(strides=False)), draw(sizes())
    heads, heads_kv, dim, dim_value, _ = size
    extents = [[n + draw(st.integers(0, 3)) for n in tokens] for _ in range(draw(st.integers(1, 3)))]
    total = sum(int(np.prod(e)) for e in extents)
    keywords = dict(window, **scales(draw))
    more_of(arrays, len(extents), size, keywords)
    bias_of(draw, arrays, heads, window, len(tokens), keywords)
    if draw(st.booleans()):
        keywords["max_lengths"] = np.max(extents, 0).tolist()
    tensors = (
        arrays(1, total, heads, dim), arrays(1, total, heads_kv, dim),
        arrays(1, total, heads_kv, dim_value),
    )  # fmt: skip
    lengths = np.array(extents)
    window_first = keywords.pop("kernel_size")
    return arrays, both_ways(
        vn.neighborhood_attention_varlen, vn.neighborhood_attention_varlen_backward, arrays,
        tensors, (lengths, window_first), **keywords,
    )  # fmt: skip


@st.composite
def attentions(draw, packed=False):
    arrays, size = Arrays(draw), draw(sizes())
    heads, heads_kv, dim, dim_value, _ = size
    keywords = dict(is_causal=draw(st.booleans()), **scales(draw))
    counts = st.integers(1, 12)
    if not packed:
        batch, queries, keys = draw(st.integers(1, 2)), draw(counts), draw(counts)
        more_of(arrays, batch, size, keywords)
        calls, positional = (vn.attention, vn.attention_backward), ()
    else:
        lengths = draw(st.lists(st.tuples(counts, counts), min_size=1, max_size=3))
        batch, (queries, keys) = 1, map(sum, zip(*lengths))
        more_of(arrays, len(lengths), size, keywords)
        calls = vn.attention_varlen, vn.attention_varlen_backward
        positional = (np.array([n for _, n in lengths]),)
        keywords["query_lengths"] = np.array([n for n, _ in lengths])
    tensors = (
        arrays(batch, queries, heads, dim), arrays(batch, keys, heads_kv, dim),
        arrays(batch, keys, heads_kv, dim_value),
    )  # fmt: skip
    return arrays, both_ways(*calls, arrays, tensors, positional, **keywords)


@st.composite
def merges(draw):
    arrays = Arrays(draw)
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=3, max_size=4)))
    count = draw(st.integers(2, 4))
    outputs = [arrays(*shape) for _ in range(count)]
    lses = [arrays(*shape[:-1], wide=True) * 3 for _ in range(count)]
    grads = np.ascontiguousarray(arrays(*shape)), arrays(*shape[:-1], wide=True)

    def run(backend):
        output, lse = vn.merge_attentions(outputs, lses, backend=backend)
        found = vn.merge_attentions_backward(outputs, lses, *grads, backend=backend)
        named = {f"grad_{i}": g for i, g in enumerate([*found[0], *found[1]])}
        return dict(output=output, lse=lse, **named)

    return arrays, run


@st.composite
def halves(draw):
    arrays, (tokens, window), size = Arrays(draw), draw(windows()), draw(sizes())
    heads, heads_kv, dim, dim_value, additional = size
    window["right_aligned"] = draw(st.booleans())
    keys = dict(window, **scales(draw))
    bias_of(draw, arrays, heads, window, len(tokens), keys)
    values = dict(window)
    if additional:
        keys["additional_keys"] = arrays(1, additional, heads_kv, dim)
        values["additional_values"] = arrays(1, additional, heads_kv, dim_value)
    query, key = arrays(1, *tokens, heads, dim), arrays(1, *tokens, heads_kv, dim)
    value = arrays(1, *tokens, heads_kv, dim_value)
    logits = vn.qk(query, key, backend="reference", **keys)
    attention, grad_logits = arrays(*logits.shape), arrays(*logits.shape)
    grad_output = arrays(*logits.shape[:-1], dim_value)

    def run(backend):
        found = dict(
            logits=vn.qk(query, key, backend=backend, **keys),
            output=vn.av(attention, value, backend=backend, **values),
        )
        found |= vn.qk_backward(query, key, grad_logits, backend=backend, **keys)
        return found | vn.av_backward(attention, value, grad_output, backend=backend, **values)

    return arrays, run


KINDS = {
    "neighborhood": neighborhoods(),
    "padded": neighborhoods(padded=True),
    "packed": packed(),
    "attention": attentions(),
    "packed attention": attentions(packed=True),
    "merge": merges(),
    "qk and av": halves(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_oracle(kind):
    @settings(max_examples=-(-EXAMPLES // len(KINDS)), deadline=None)
    @given(KINDS[kind])
    def check(problem):
        arrays, run = problem
        wanted, found = run("reference"), run(None)
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            other = wanted[name]
            assert array.dtype == other.dtype and array.shape == other.shape
            array, other = array.astype(np.float64), other.astype(np.float64)
            finite = np.isfinite(other)
            np.testing.assert_array_equal(np.isfinite(array), finite, err_msg=name)
            tolerance = TOLERANCE[arrays.name] * (5 if "grad" in name else 1)
            largest = max(1.0, np.abs(other[finite]).max(initial=0.0))
            np.testing.assert_allclose(
                array[finite], other[finite], rtol=tolerance, atol=tolerance * largest, err_msg=name
            )

    check()
