# SPDX-License-Identifier: MIT
"""NATTEN's functions from 0.17 on, its context and its kernels by name."""

import importlib
import inspect

import pytest

torch = pytest.importorskip("torch")

from inputs import heads_first, qkv, randn  # noqa: E402

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


def test_today():
    natten = vecina.compat.install("natten")
    query, key, value = qkv(1, 6, 8, 2, 4)
    more = qkv(1, 3, 2, 4)[:2]
    wanted = vt.na2d(
        query, key, value, (3, 4), (1, 2), (2, 1), (True, False), 0.3, additional_keys=more[0],
        additional_values=more[1], return_lse=True,
    )  # fmt: skip
    got = natten.na2d(
        query, key, value, (3, 4), (1, 2), (2, 1), (True, False), 0.3, *more,
        backend="hopper-fna", q_tile_shape=(8, 8), kv_tile_shape=(8, 4),
        run_persistent_kernel=False, torch_compile=True, return_lse=True,
    )  # fmt: skip
    for mine, his in zip(got, wanted):
        torch.testing.assert_close(mine, his, rtol=0, atol=0)
    given = vecina.compat.recorded()["na2d"]
    assert given == dict(
        backend="hopper-fna", q_tile_shape=(8, 8), kv_tile_shape=(8, 4),
        run_persistent_kernel=False, torch_compile=True,
    )  # fmt: skip
    generic = natten.functional.neighborhood_attention_generic(query, key, value, 3)
    torch.testing.assert_close(generic, vt.na2d(query, key, value, 3), rtol=0, atol=0)
    reference = natten.backends.reference.na2d_reference(query, key, value, 3)
    torch.testing.assert_close(reference, generic)
    names = natten.backends.get_compatible_backends(query, key, value, torch_compile=False)
    assert names and natten.backends.choose_backend(query, key, value, False) == names[0]
    assert natten.get_configs_for_cutlass_fna(query, key, value) == [((8, 8), (8, 8))]
    assert natten.HAS_LIBNATTEN == ("cuda" in vecina.backends() and not vecina.why_not("cuda"))


@pytest.mark.parametrize(
    "keywords, error",
    [
        (dict(kernel_size=1), ValueError),
        (dict(kernel_size=9), ValueError),
        (dict(kernel_size=(3, 3)), ValueError),
        (dict(kernel_size=3, stride=4), ValueError),
        (dict(kernel_size=3, dilation=0), ValueError),
        (dict(kernel_size=3, is_causal=1), ValueError),
        (dict(kernel_size=3, backend="nonesuch"), NotImplementedError),
        (dict(kernel_size=3, kernel_schedule="nonesuch"), ValueError),
        (dict(kernel_size=3, additional_keys=torch.zeros(1, 1, 2, 4)), ValueError),
        (dict(kernel_size=3, nonesuch=1), TypeError),
    ],
)
def test_errors_of_today(keywords, error):
    with pytest.raises(error):
        vecina.compat.for_version("0.21").na1d(*qkv(1, 8, 2, 4), **keywords)


@pytest.mark.parametrize("version", ["0.20.1", "0.21.6"])
def test_kernels_by_name(version):
    natten = vecina.compat.install("natten", version)
    backends = natten.backends
    query, key, value = qkv(1, 6, 8, 2, 4)
    wanted = vt.na2d(query, key, value, 3, 2, 1, (False, True), return_lse=True)
    for kernel in ("cutlass_fna", "cutlass_hopper_fna", "cutlass_blackwell_fna", "flex"):
        generic = "flex_fna" if kernel == "flex" else kernel
        for function in (f"{generic}_generic", f"na2d_{kernel}"):
            call = getattr(backends, function)
            got = call(query, key, value, 3, 2, 1, (False, True), q_tile_shape=(8, 8),
                       kv_tile_shape=(8, 8), return_lse=True)  # fmt: skip
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    flat = [t.flatten(1, 2) for t in (query, key, value)]
    for kernel in ("cutlass_fmha", "cutlass_hopper_fmha", "cutlass_blackwell_fmha", "flex_fmha"):
        got = getattr(backends, kernel)(*flat, scale=0.3, q_tile_size=64, kv_tile_size=64)
        torch.testing.assert_close(got, vt.attention(*flat, scale=0.3), rtol=0, atol=0)
    assert ("is_causal" in inspect.signature(backends.cutlass_fmha).parameters) == (
        version == "0.21.6"
    )
    assert backends.can_run_cutlass_fna(query, key, value)
    assert not backends.can_run_cutlass_hopper_fna(query, key, value)
    assert not hasattr(natten, "cutlass_fna_generic") and hasattr(natten, "get_configs_for_flex_fna")


def test_context():
    natten = vecina.compat.install("natten", "0.17.5")
    natten.context.NattenContext.reset()
    assert not natten.is_fna_enabled() and natten.is_memory_usage_default()
    natten.use_fused_na()
    natten.set_memory_usage_preference("strict")
    assert natten.is_fna_enabled() and natten.is_memory_usage_strict()
    natten.use_autotuner(forward_pass=True, steps_forward=3)
    assert natten.context.AutotunerContext.steps_forward == 3
    assert natten.is_autotuner_enabled() and not natten.is_autotuner_enabled_for_backward()
    vt.allow_nondeterministic_backward()
    natten.use_deterministic_algorithms()
    assert not vt.is_nondeterministic_backward_allowed()
    assert not natten.is_kv_parallelism_in_fused_na_enabled()
    with pytest.raises(RuntimeError):
        natten.use_kv_parallelism_in_fused_na()
    natten.disable_autotuner()
    with pytest.raises(ValueError, match="steps_forward is 'abc'"):
        natten.use_autotuner(steps_forward="abc")
    with pytest.raises(RuntimeError, match="autotuner"):
        natten.use_autotuner(True)  # while its deterministic algorithms are on
    natten.disable_tiled_na()
    assert not natten.is_tiled_na_enabled()
    with pytest.raises(ValueError, match="'much'"):
        natten.set_memory_usage_preference("much")
    natten.context.NattenContext.reset()
    assert not natten.is_fna_enabled() and natten.is_tiled_na_enabled()
    today = vecina.compat.for_version("0.21")
    today.allow_flex_compile(True, backprop=True)
    assert today.is_flex_compile_allowed() and today.is_flex_compile_backprop_allowed()
    today.disable_flex_compile()
    assert not today.is_flex_compile_allowed()


def test_flex_and_experimental_of_0_17():
    vecina.compat.install("natten", "0.17.5")
    from natten.experimental import na2d
    from natten.flex import can_run_flex_attention, flex_na2d, get_na_flex_mask

    query, key, value = qkv(1, 6, 8, 2, 4)
    bias = randn(2, 5, 5)
    wanted = vt.na2d(query, key, value, 3, 1, (1, 2), (True, False))
    torch.testing.assert_close(flex_na2d(query, key, value, 3, (1, 2), (True, False)), wanted)
    torch.testing.assert_close(
        na2d(query, key, value, 3, rpb=bias, scale=0.5),
        vt.na2d(query, key, value, 3, scale=0.5, bias=bias),
    )
    assert can_run_flex_attention(query.shape)
    mask = get_na_flex_mask(2, (6, 8), (3, 3), (1, 2), (True, False))
    i = torch.arange(48)
    seen = mask.mask_mod(0, 0, i[:, None], i[None])
    dense = [t.flatten(1, 2).transpose(1, 2) for t in (query, key, value)]
    masked = torch.nn.functional.scaled_dot_product_attention(*dense, attn_mask=seen)
    torch.testing.assert_close(masked.transpose(1, 2).reshape(wanted.shape), wanted)


def test_everything_compiles_without_a_graph_break():
    today, old = (vecina.compat.for_version(v) for v in ("0.21.6", "0.17.5"))
    port = importlib.import_module("vecina.compat.natten_mps")
    tensors = qkv(1, 6, 8, 2, 4)
    first = [heads_first(t) for t in tensors]
    flat = [t.flatten(1, 2) for t in tensors]
    tiles = dict(backend="cutlass-fna", q_tile_shape=(8, 8), kv_tile_shape=(8, 8))
    parts = [today.attention(*flat, return_lse=True) for _ in range(2)]
    for call, inputs in (
        (lambda q, k, v: today.na2d(q, k, v, (3, 4), 2, 1, True, return_lse=True, **tiles), tensors),
        (lambda q, k, v: today.attention(q, k, v, True), flat),
        (lambda *p: today.merge_attentions(p[:2], p[2:]), [*zip(*parts)][0] + [*zip(*parts)][1]),
        (lambda q, k: old.functional.na2d_qk(q, k, 3, 2), first[:2]),
        (lambda q, k, v: port.na2d(q, k, v, 3, stride=2), tensors),
        (lambda q, k: port.na2d_qk(q, k, 3), tensors[:2]),
        (today.NeighborhoodAttention2D(8, 2, 3), [randn(1, 6, 8, 8)]),
        (old.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True), [randn(1, 6, 8, 8)]),
    ):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*inputs), call(*inputs))
