# SPDX-License-Identifier: MIT
"""vecina.numpy against a second definition, and what it says of wrong arguments."""

import subprocess
import sys

import numpy as np
import pytest

import vecina
import vecina.numpy as vn

def random(rng, shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def plain_1d(query, key, value, kernel_size, scale):
    """A second definition, from the window that the library names."""
    batch, tokens, heads, dim = query.shape
    output = np.zeros_like(value)
    line = f"1d {tokens} kernel_size {kernel_size} head_dim {dim}"
    for i in range(tokens):
        begin, step, count = vecina.window(line, 0, i)
        keys = [begin + step * j for j in range(count)]
        logits = np.einsum("bhd,bkhd->bhk", query[:, i], key[:, keys]) * scale
        weights = np.exp(logits)
        weights /= weights.sum(-1, keepdims=True)
        output[:, i] = np.einsum("bhk,bkhd->bhd", weights, value[:, keys])
    return output


def test_definition():
    rng = np.random.default_rng(0)
    query, key, value = (random(rng, (2, 11, 3, 8), "float64") for _ in range(3))
    output = vn.na1d(query, key, value, 4)
    np.testing.assert_allclose(output, plain_1d(query, key, value, 4, 8**-0.5), atol=1e-12)


def test_attention_of_other_lengths():
    rng = np.random.default_rng(1)
    query, key = random(rng, (2, 5, 4, 8), "float64"), random(rng, (2, 9, 2, 8), "float64")
    output, lse = vn.attention(query, key, key, is_causal=True, return_lse=True)
    repeated = key.repeat(2, axis=2)
    logits = np.einsum("bqhd,bkhd->bqhk", query, repeated) * 8**-0.5
    logits = np.where(np.tril(np.ones((5, 9)))[None, :, None].astype(bool), logits, -np.inf)
    sums = np.exp(logits).sum(-1)
    np.testing.assert_allclose(lse, np.log(sums), atol=1e-12)
    wanted = np.einsum("bqhk,bkhd->bqhd", np.exp(logits) / sums[..., None], repeated)
    np.testing.assert_allclose(output, wanted, atol=1e-12)


def test_views_are_used_where_they_lie():
    rng = np.random.default_rng(2)
    packed = random(rng, (2, 16, 3, 4, 8))
    query, key, value = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    output = vn.na1d(query, key, value, 5)
    copies = [np.ascontiguousarray(view) for view in (query, key, value)]
    np.testing.assert_array_equal(output, vn.na1d(*copies, 5))


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(3)
    arrays = [random(rng, (1, 9, 2, 16)).astype(ml_dtypes.bfloat16) for _ in range(3)]
    output = vn.na1d(*arrays, 3)
    assert output.dtype == ml_dtypes.bfloat16
    wide = vn.na1d(*(array.astype("float32") for array in arrays), 3)
    np.testing.assert_allclose(output.astype("float32"), wide, rtol=1e-2, atol=1e-2)
    as_integers = vn.na1d(*(array.view(np.uint16) for array in arrays), 3)
    np.testing.assert_array_equal(as_integers, output.view(np.uint16))


def test_backward_is_the_derivative():
    rng = np.random.default_rng(4)
    shapes = [(1, 4, 5, 4, 3), (1, 4, 5, 2, 3), (1, 4, 5, 2, 2), (1, 2, 2, 3), (1, 2, 2, 2)]
    arrays = [random(rng, shape, "float64") for shape in shapes]
    bias = random(rng, (4, 5, 5), "float64")
    keywords = dict(kernel_size=3, is_causal=(True, False), backend="reference")

    def call(arrays, bias):
        return vn.na2d(
            *arrays[:3],
            additional_keys=arrays[3],
            additional_values=arrays[4],
            bias=bias,
            return_lse=True,
            **keywords,
        )

    output, lse = call(arrays, bias)
    grad_output, grad_lse = random(rng, output.shape, "float64"), random(rng, lse.shape, "float64")
    gradients = vn.neighborhood_attention_backward(
        *arrays[:3],
        output,
        lse,
        grad_output,
        grad_lse=grad_lse,
        additional_keys=arrays[3],
        additional_values=arrays[4],
        bias=bias,
        **keywords,
    )
    names = ["query", "key", "value", "additional_keys", "additional_values", "bias"]
    assert sorted(gradients) == sorted(f"grad_{name}" for name in names)
    tensors = [*arrays, bias]
    for i, name in enumerate(names):
        direction = random(rng, tensors[i].shape, "float64")
        ends = []
        for step in (1e-5, -1e-5):
            moved = [t + step * direction if j == i else t for j, t in enumerate(tensors)]
            moved_output, moved_lse = call(moved[:5], moved[5])
            ends.append((moved_output * grad_output).sum() + (moved_lse * grad_lse).sum())
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradients[f"grad_{name}"] * direction).sum(), slope, rtol=1e-6)


def test_merge_is_attention_over_all_keys():
    rng = np.random.default_rng(5)
    query, key = random(rng, (2, 7, 3, 8)), random(rng, (2, 12, 3, 8))
    parts = [vn.attention(query, key[:, a:b], key[:, a:b], return_lse=True)
             for a, b in ((0, 3), (3, 8), (8, 12))]  # fmt: skip
    output, lse = vn.merge_attentions([p[0] for p in parts], [p[1] for p in parts])
    wanted, wanted_lse = vn.attention(query, key, key, return_lse=True)
    np.testing.assert_allclose(output, wanted, atol=1e-6)
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-6)


def test_padded_lengths():
    rng = np.random.default_rng(6)
    arrays = [random(rng, (2, 9, 2, 4)) for _ in range(3)]
    output = vn.na1d(*arrays, 3, lengths=np.array([9, 5]), backend="reference")
    np.testing.assert_array_equal(output[1, 5:], 0)
    alone = vn.na1d(*(array[1:, :5] for array in arrays), 3, backend="reference")
    np.testing.assert_array_equal(output[1:, :5], alone)


ONE = np.zeros((1, 8, 2, 4), "float32")


@pytest.mark.parametrize(
    "arguments, keywords, words",
    [
        ((ONE, ONE, ONE, 9), {}, ["kernel_size 9", "8 tokens"]),
        ((ONE, ONE, ONE, (3, 3)), {}, ["kernel_size is (3, 3)", "axis"]),
        ((ONE, ONE, ONE, 3.0), {}, ["kernel_size is 3.0"]),
        ((ONE, ONE, ONE, True), {}, ["kernel_size is True"]),
        ((ONE, ONE, ONE, 3, 4), {}, ["stride 4", "kernel_size 3"]),
        ((ONE, ONE, ONE, 3), {"is_causal": 1}, ["is_causal is 1", "bool"]),
        ((ONE, ONE, ONE, 3), {"scale": "x"}, ["scale is 'x'"]),
        ((ONE, ONE, ONE, 3), {"scale": float("nan")}, ["scale nan"]),
        ((ONE, ONE[:, :7], ONE, 3), {}, ["query has 8 tokens", "key has 7"]),
        ((ONE, ONE, ONE.astype("float64"), 3), {}, ["value is f64", "needs f32"]),
        ((ONE.astype("int8"), ONE, ONE, 3), {}, ["query", "format 'b'"]),
        ((ONE[0], ONE, ONE, 3), {}, ["query has 3 dimensions"]),
        ((ONE, ONE, ONE[0], 3), {}, ["value has 3 dimensions"]),
        ((ONE.transpose(0, 1, 3, 2), *(np.zeros((1, 8, 4, 2), "float32"),) * 2, 3), {},
         ["query has stride 4"]),
        ((ONE, ONE, ONE, 3), {"additional_keys": ONE}, ["additional_values belong together"]),
        ((ONE, ONE, ONE, 3), {"backend": "nonesuch"}, ["nonesuch", "known are cpu, cuda, reference"]),
    ],
)  # fmt: skip
def test_wrong_arguments_raise_a_sentence(arguments, keywords, words):
    with pytest.raises(ValueError) as error:
        vn.neighborhood_attention(*arguments, **keywords)
    for word in words:
        assert word in str(error.value)


def test_what_a_backend_does_not_take_is_not_given_to_the_reference():
    bias = np.zeros((2, 5), "float32")
    assert vn.na1d(ONE, ONE, ONE, 3, bias=bias, backend="reference").shape == ONE.shape
    line = "1d 8 kernel_size 3 heads 2 head_dim 4 bias"
    sentence = vecina.why_not("cpu", line)
    if not sentence:
        assert vn.na1d(ONE, ONE, ONE, 3, bias=bias).shape == ONE.shape
        return
    with pytest.raises(NotImplementedError, match=sentence):
        vn.na1d(ONE, ONE, ONE, 3, bias=bias)


def test_import_brings_no_framework():
    code = "import sys, vecina; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_torch_its_module_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import vecina.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "pip install torch" in done.stderr


def test_natten_mlx_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import numpy, vecina.compat; "
        "vecina.compat.install('natten_mlx'); from natten_mlx import na1d; "
        "x = numpy.ones((1, 9, 2, 4), 'float32'); assert (na1d(x, x, x, 3) == 1).all()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_about_itself():
    assert vecina.backends()[-1] == "reference" and "cpu" in vecina.backends()
    assert vecina.info()["version"] == vecina.__version__
    assert vecina.window("1d 10 kernel_size 4 head_dim 1", 0, 9) == (6, 1, 4)
    vecina.set_num_threads(1)
    output = vn.na1d(ONE, ONE, ONE, 3)
    vecina.set_num_threads(0)
    np.testing.assert_array_equal(output, vn.na1d(ONE, ONE, ONE, 3))


def test_attention_varlen_takes_the_largest_lengths():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 9, 2, 4), np.float32)
    lengths, most = np.array([4, 5]), dict(max_length=6, max_query_length=7)
    wanted = vn.attention_varlen(query, key, value, lengths, return_lse=True)
    found = vn.attention_varlen(
        query, key, value, lengths, query_lengths=lengths, return_lse=True, **most
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    backward = vn.attention_varlen_backward
    gradients = [backward(query, key, value, *wanted, wanted[0], lengths, **keywords)
                 for keywords in ({}, dict(query_lengths=lengths, **most))]  # fmt: skip
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="5"):
        vn.attention_varlen(query, key, value, lengths, max_length=4)


def test_wrong_arguments_of_arrays():
    zeros = np.zeros((2, 9, 2, 4), np.float32)
    none = zeros[:1, :0]
    assert vn.na1d(zeros, zeros, zeros, np.array([3])).shape == zeros.shape
    assert vn.attention_varlen(none, none, none, np.array([0, 0])).shape == none.shape
    merged = vn.merge_attentions(np.stack([zeros] * 2), np.stack([zeros[..., 0].copy()] * 2))
    assert merged[0].shape == zeros.shape
    for wrong, says in (
        (lambda: vn.na1d(zeros, zeros, zeros, np.array([3, 3])), "kernel_size is array"),
        (lambda: vn.na1d(zeros, zeros, zeros, 3, backend=0), "backend is 0"),
        (lambda: vn.na1d(zeros, np.ma.masked_array(zeros, zeros == 0), zeros, 3), "masked"),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()
