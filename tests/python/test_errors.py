# SPDX-License-Identifier: MIT
"""Each wrong argument: a ValueError that says so, and the type of the release's error in compat."""

import pytest

torch = pytest.importorskip("torch")

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


def zeros(*shape, **keywords):
    return torch.zeros(shape, **keywords)


TENSORS = dict(query=zeros(2, 8, 4, 4), key=zeros(2, 8, 2, 4), value=zeros(2, 8, 2, 4))
MORE = dict(additional_keys=zeros(2, 3, 2, 4), additional_values=zeros(2, 3, 2, 4))
#: What is wrong in a call of na1d, for NATTEN, natten-mps and vecina alike.
WRONG = {
    "rank": {name: zeros(2, 8, 8, 4, 4) for name in TENSORS},
    "rank of key": dict(key=zeros(2, 4, 2, 2, 4)),
    "tokens": dict(key=zeros(2, 7, 2, 4)),
    "batch": dict(key=zeros(1, 8, 2, 4), value=zeros(1, 8, 2, 4)),
    "head_dim": dict(key=zeros(2, 8, 2, 5)),
    "heads of value": dict(value=zeros(2, 8, 4, 4)),
    "heads do not divide": dict(key=zeros(2, 8, 3, 4), value=zeros(2, 8, 3, 4)),
    "more heads of key": dict(key=zeros(2, 8, 8, 4), value=zeros(2, 8, 8, 4)),
    "additional keys alone": dict(additional_keys=MORE["additional_keys"]),
    "additional values alone": dict(additional_values=MORE["additional_values"]),
    "additional head_dim": {**MORE, "additional_keys": zeros(2, 3, 2, 5)},
    "additional batch": {name: zeros(1, 3, 2, 4) for name in MORE},
    "additional tokens": {**MORE, "additional_values": zeros(2, 2, 2, 4)},
    "additional heads": {name: zeros(2, 3, 3, 4) for name in MORE},
    "additional rank": {name: zeros(2, 3, 8) for name in MORE},
    "kernel_size 0": dict(kernel_size=0),
    "kernel_size 3.0": dict(kernel_size=3.0),
    "kernel_size of two axes": dict(kernel_size=(3, 3)),
    "kernel_size exceeds": dict(kernel_size=9),
    "dilation 0": dict(dilation=0),
    "dilation -1": dict(dilation=-1),
    "dilation '1'": dict(dilation="1"),
    "dilation exceeds": dict(dilation=3),
    "stride 0": dict(stride=0),
    "stride exceeds": dict(stride=4),
    "stride of two axes": dict(stride=(1, 1)),
    "is_causal of two axes": dict(is_causal=(True, True)),
}  # fmt: skip
#: For NATTEN and vecina: natten-mps does not look at these.
WRONG_TOO = {
    "is_causal 1": dict(is_causal=1),
    "dtype": dict(key=zeros(2, 8, 2, 4, dtype=torch.float64)),
}
#: For NATTEN alone.
WRONG_THERE = {
    "kernel_size 1": (dict(kernel_size=1), ValueError),
    "kernel_schedule": (dict(kernel_schedule="nonesuch"), ValueError),
    "backend": (dict(backend="nonesuch"), NotImplementedError),
    "q_tile_shape alone": (dict(q_tile_shape=(64,)), ValueError),
    "sparse": (dict(query=TENSORS["query"].to_sparse()), NotImplementedError),
}


def call(function, wrong):
    return function(**{**TENSORS, "kernel_size": 3, **wrong})


@pytest.mark.parametrize("name", [*WRONG, *WRONG_TOO])
def test_ours(name):
    call(vt.na1d, {})
    with pytest.raises(ValueError) as error:
        call(vt.na1d, {**WRONG, **WRONG_TOO}[name])
    assert len(str(error.value)) > 20


@pytest.mark.parametrize("version", ["0.20.1", "0.21.6"])
@pytest.mark.parametrize("name", [*WRONG, *WRONG_TOO, *WRONG_THERE])
def test_natten(name, version):
    na1d = vecina.compat.for_version(version).na1d
    call(na1d, {})
    alike = {key: (wrong, ValueError) for key, wrong in {**WRONG, **WRONG_TOO}.items()}
    wrong, error = {**alike, **WRONG_THERE}[name]
    with pytest.raises(error):
        call(na1d, wrong)


@pytest.mark.parametrize("name", WRONG)
def test_natten_mps(name):
    from vecina.compat import natten_mps

    call(natten_mps.na1d, {})
    with pytest.raises(ValueError):
        call(natten_mps.na1d, WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_natten_mlx(name):
    from vecina.compat import natten_mlx

    def arrays(given):
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in given.items()}

    good = dict(**arrays(TENSORS), kernel_size=3)
    natten_mlx.na1d(**good)
    with pytest.raises(ValueError):
        natten_mlx.na1d(**{**good, **arrays(WRONG[name])})


#: Before 0.20, where C++ looked at what tensors hold: RuntimeError. name -> (what is wrong, error)
HEADS_FIRST = dict(query=zeros(2, 2, 8, 4), key=zeros(2, 2, 8, 4))
WEIGHTS = dict(attn=zeros(2, 2, 8, 3), value=zeros(2, 2, 8, 4))
WRONG_BEFORE = {
    "kernel_size 0": (dict(kernel_size=0), RuntimeError),
    "kernel_size 1": (dict(kernel_size=1), RuntimeError),
    "kernel_size exceeds": (dict(kernel_size=9), RuntimeError),
    "dilation 0": (dict(dilation=0), RuntimeError),
    "dilation -1": (dict(dilation=-1), RuntimeError),
    "dilation exceeds": (dict(dilation=3), RuntimeError),
}
WRONG_TYPES = {
    "kernel_size 3.0": dict(kernel_size=3.0),
    "kernel_size of two axes": dict(kernel_size=(3, 3)),
    "dilation '1'": dict(dilation="1"),
}
WRONG_QK = {
    "rank": ({n: zeros(2, 2, 4, 2, 4) for n in HEADS_FIRST}, RuntimeError),
    "tokens": (dict(key=zeros(2, 2, 7, 4)), RuntimeError),
    "batch": (dict(key=zeros(1, 2, 8, 4)), RuntimeError),
    "head_dim": (dict(key=zeros(2, 2, 8, 5)), RuntimeError),
    "heads": (dict(key=zeros(2, 4, 8, 4)), RuntimeError),
    "dtype": (dict(key=zeros(2, 2, 8, 4, dtype=torch.float64)), RuntimeError),
}
MORE_BEFORE = {
    "additional batch": (zeros(1, 2, 3, 4), ValueError),
    "additional head_dim": (zeros(2, 2, 3, 5), ValueError),
    "additional heads": (zeros(2, 3, 3, 4), ValueError),
    "additional rank": (zeros(2, 2, 12), ValueError),
}  # fmt: skip
WRONG_AV = {
    "slots": (dict(attn=zeros(2, 2, 8, 4)), RuntimeError),
    "tokens": (dict(attn=zeros(2, 2, 7, 3)), RuntimeError),
    "dtype": (dict(attn=zeros(2, 2, 8, 3, dtype=torch.float64)), RuntimeError),
}


@pytest.mark.parametrize("version", ["0.14.6", "0.15.1", "0.17.5"])
def test_halves_of_natten_before_0_20(version):
    functional = vecina.compat.for_version(version).functional
    old = version == "0.14.6"
    qk = functional.natten1dqk if old else functional.na1d_qk
    av = functional.natten1dav if old else functional.na1d_av
    of_types = ValueError if version == "0.17.5" else TypeError
    both = {**WRONG_BEFORE, **{n: (wrong, of_types) for n, wrong in WRONG_TYPES.items()}}
    if version == "0.17.5":
        both["is_causal 1"] = (dict(is_causal=1), ValueError)
        both["is_causal of two axes"] = (dict(is_causal=(True, True)), ValueError)
    cases = [(qk, {**HEADS_FIRST, **SIZES}, {**both, **WRONG_QK})]
    cases.append((av, {**WEIGHTS, **SIZES}, {**both, **WRONG_AV}))
    if not old:
        for function, good, keyword in ((qk, HEADS_FIRST, "additional_keys"),
                                        (av, WEIGHTS, "additional_values")):  # fmt: skip
            more = {n: ({keyword: t}, error) for n, (t, error) in MORE_BEFORE.items()}
            cases.append((function, {**good, **SIZES}, more))
    for function, good, wrongs in cases:
        function(**good)
        for name, (wrong, error) in wrongs.items():
            with pytest.raises(error) as raised:
                function(**{**good, **wrong})
            assert not (error is RuntimeError and raised.type is ValueError), name


SIZES = dict(kernel_size=3, dilation=1)


@pytest.mark.parametrize("name", [*WRONG_BEFORE, *WRONG_TYPES, "key", "dtype", "nested"])
def test_na1d_of_natten_0_17(name):
    na1d = vecina.compat.for_version("0.17.5").functional.na1d
    call(na1d, {})
    wrong, error = {
        **WRONG_BEFORE, **{n: (w, ValueError) for n, w in WRONG_TYPES.items()},
        "key": (dict(key=zeros(2, 7, 2, 4)), RuntimeError),
        "dtype": (WRONG_TOO["dtype"], RuntimeError),
        "nested": (dict(query=torch.nested.nested_tensor([zeros(8, 4, 4)] * 2)),
                   NotImplementedError),
    }[name]  # fmt: skip
    with pytest.raises(error):
        call(na1d, wrong)


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


PACKED = dict(query=zeros(1, 9, 2, 4), key=zeros(1, 9, 2, 4), value=zeros(1, 9, 2, 4))
SUMS = dict(cumulative_seqlen_Q=int32(0, 4, 9), cumulative_seqlen_KV=int32(0, 4, 9))
MOST = dict(max_seqlen_Q=5, max_seqlen_KV=5)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(query=zeros(9, 2, 4)),
        dict(value=zeros(1, 8, 2, 4)),
        dict(seqlens_Q=int32(4, 5)),
        dict(seqlens_Q=int32(4, 5), seqlens_KV=[4, 5]),
        dict(seqlens_Q=int32(4, 5), seqlens_KV=torch.tensor([4, 5])),
        dict(seqlens_Q=int32(4, 5), seqlens_KV=int32(4, 5)[None]),
        dict(seqlens_Q=int32(4, 5), seqlens_KV=int32(9)),
        dict(seqlens_Q=int32(), seqlens_KV=int32()),
        dict(cumulative_seqlen_Q=int32(0, 4, 9), **MOST),
        dict(cumulative_seqlen_Q=int32(0), cumulative_seqlen_KV=int32(0), **MOST),
        dict(**SUMS),
        dict(**SUMS, max_seqlen_Q=5),
        dict(**SUMS, max_seqlen_Q=5.0, max_seqlen_KV=5),
        dict(**SUMS, max_seqlen_Q=10, max_seqlen_KV=5),
        dict(**SUMS, max_seqlen_Q=0, max_seqlen_KV=5),
        dict(**SUMS, max_seqlen_Q=-1, max_seqlen_KV=-1),
        dict(**SUMS, **MOST, query=zeros(2, 9, 2, 4), key=zeros(2, 9, 2, 4),
             value=zeros(2, 9, 2, 4)),
    ],
    ids=lambda wrong: " ".join(wrong),
)  # fmt: skip
def test_attention_of_natten(wrong):
    attention = vecina.compat.for_version("0.21").attention
    attention(**PACKED, **SUMS, **MOST)
    with pytest.raises(ValueError):
        attention(**{**PACKED, **wrong})


QUERY = TENSORS["query"]
SIDES = dict(key=QUERY, value=QUERY)
KINDS = {
    "ndarray": QUERY.numpy(), "list": QUERY.tolist(), "None": None, "sparse": QUERY.to_sparse(),
    "nested": torch.nested.nested_tensor([QUERY[0], QUERY[1]]),
    "jagged": torch.nested.nested_tensor([QUERY[0], QUERY[1]], layout=torch.jagged),
    "quantized": torch.quantize_per_tensor(QUERY, 0.1, 0, torch.qint8),
    "zero": torch._efficientzerotensor(QUERY.shape),
}  # fmt: skip
OF_KIND = {
    "na1d": lambda x: vt.na1d(x, QUERY, QUERY, 3),
    "na1d of key": lambda x: vt.na1d(QUERY, x, QUERY, 3),
    "with gradients": lambda x: vt.na1d(x, QUERY.clone().requires_grad_(), QUERY, 3),
    "of any rank": lambda x: vt.neighborhood_attention(x, QUERY, QUERY, 3),
    "attention": lambda x: vt.attention(x, QUERY, QUERY),
    "attention, value": lambda x: vt.attention(QUERY, QUERY, x),
    "attention, gradients": lambda x: vt.attention(x, QUERY.clone().requires_grad_(), QUERY),
    "attention_varlen": lambda x: vt.attention_varlen(x, QUERY, QUERY, torch.tensor([8])),
    "qk": lambda x: vt.qk(x, QUERY, 3),
    "av": lambda x: vt.av(x, QUERY, 3),
    "merge": lambda x: vt.merge_attentions([QUERY, x], [zeros(2, 8, 4)] * 2),
}


@pytest.mark.parametrize("function", OF_KIND)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dense_tensor(kind, function):
    of_type = kind in ("ndarray", "list", "None", "zero")
    with pytest.raises(ValueError if of_type else NotImplementedError) as error:
        OF_KIND[function](KINDS[kind])
    says = {"None": "None", "sparse": "sparse_coo", "jagged": "nested",
            "zero": "stride 0" if function == "merge" else "no memory"}  # fmt: skip
    assert says.get(kind, kind) in str(error.value) and len(str(error.value)) < 160


@pytest.mark.parametrize("wrong, says", [
    (lambda: vt.neighborhood_attention_varlen(**PACKED, lengths=[4, 5], kernel_size=3),
     "lengths is of type list"),
    (lambda: vt.attention_varlen(**PACKED, lengths=[4, 5]), "lengths is of type list"),
    (lambda: vt.attention_varlen(**PACKED, lengths=int32(4, 5), query_lengths=[4, 5]),
     "query_lengths is of type list"),
    (lambda: vt.na1d(QUERY, QUERY, QUERY, 3, lengths=[[8], [5]]), "lengths is of type list"),
    (lambda: vt.na1d(QUERY, QUERY, QUERY, torch.tensor([3, 3])), "kernel_size is tensor"),
    (lambda: vt.na1d(QUERY, QUERY, QUERY, 3, backend=0), "backend is 0"),
    (lambda: vt.attention(QUERY[:, :0], QUERY, QUERY), "query has no tokens"),
    (lambda: vt.attention(QUERY, QUERY[:, :0], QUERY[:, :0]), "key has no tokens"),
    (lambda: vt.na1d(*[QUERY[:, :0]] * 3, 1), "query has no tokens"),
    (lambda: vt.attention(*[QUERY[None]] * 3), "query has 5 dimensions"),
    (lambda: vt.attention(*[QUERY[0]] * 3, return_lse=True), "query has 3 dimensions"),
    (lambda: vt.attention(QUERY[None].clone().requires_grad_(), QUERY, QUERY),
     "query has 5 dimensions"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_the_callers_terms(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


def test_stacked_tensors_are_parts_to_merge():
    parts, lses = torch.randn(2, 1, 8, 2, 4), torch.randn(2, 1, 8, 2)
    for got, wanted in zip(vt.merge_attentions(parts, lses),
                           vt.merge_attentions(list(parts), list(lses))):  # fmt: skip
        assert torch.equal(got, wanted)


META = zeros(2, 8, 4, 4, device="meta")


@pytest.mark.parametrize("wrong", [
    lambda: vt.na1d(META, META, META, 9),
    lambda: vt.na1d(META, META[:, :7], META, 3),
    lambda: vt.na1d(META, META[:1], META, 3),
    lambda: vt.na1d(META, META.double(), META, 3),
    lambda: vt.na1d(META, META, META, 3, stride=4),
    lambda: vt.na1d(META, META, META, 3, bias=zeros(4, 6, device="meta")),
    lambda: vt.attention(META, META, META[:, :7]),
])  # fmt: skip
def test_meta_tensors_are_checked(wrong):
    assert vt.na1d(META, META, META[..., :3], 3, output_stride=3).shape == (2, 3, 4, 3)
    assert vt.na1d(META, META, META, 3, bias=zeros(4, 5, device="meta")).is_meta
    assert vt.attention(META, META[:, :5, :2], META[:, :5, :2], return_lse=True)[1].is_meta
    with pytest.raises(ValueError):
        wrong()
