# SPDX-License-Identifier: MIT
"""vecina.compat: each release's names and meaning, against vecina's own functions."""

import importlib
import importlib.util
import inspect
import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import vecina.compat  # noqa: E402
import vecina.torch as vt  # noqa: E402


@pytest.fixture(autouse=True)
def _leave_no_aliases():
    yield
    aliases = ("natten", "natten_mps", "natten_mlx")
    for name in [k for k in sys.modules if k.partition(".")[0] in aliases]:
        del sys.modules[name]


def randn(*shape, seed=0, **keywords):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **keywords)


def qkv(*shape, **keywords):
    return [randn(*shape, seed=seed, **keywords) for seed in (1, 2, 3)]


def heads_first(tensor):
    return tensor.movedim(-2, 1)


@pytest.mark.parametrize(
    "version, path, name, arguments",
    [
        ("0.21.6", "", "na1d", "query key value kernel_size stride dilation is_causal scale "
         "additional_keys additional_values attention_kwargs backend q_tile_shape kv_tile_shape "
         "backward_q_tile_shape backward_kv_tile_shape backward_kv_splits "
         "backward_use_pt_reduction run_persistent_kernel kernel_schedule torch_compile "
         "return_lse"),
        ("0.21.6", "functional", "merge_attentions",
         "outputs lse_tensors torch_compile use_autograd_fix"),
        ("0.20.1", "", "attention", "query key value scale backend q_tile_size kv_tile_size "
         "backward_q_tile_size backward_kv_tile_size backward_kv_splits backward_use_pt_reduction "
         "run_persistent_kernel kernel_schedule torch_compile return_lse"),
        ("0.17.5", "functional", "na3d", "query key value kernel_size dilation is_causal rpb scale "
         "additional_keys additional_values xformers_kwargs"),
        ("0.17.5", "functional", "na2d_qk",
         "query key kernel_size dilation additional_keys is_causal rpb"),
        ("0.15.1", "functional", "na3d_qk_with_bias", "query key bias kernel_size_d kernel_size "
         "dilation_d dilation additional_keys"),
        ("0.14.6", "functional", "natten2dqkrpb", "query key rpb kernel_size dilation"),
        ("0.14.6", "", "NeighborhoodAttention2D", "dim num_heads kernel_size dilation bias "
         "qkv_bias qk_scale attn_drop proj_drop"),
        ("0.17.5", "na2d", "NeighborhoodAttention2D", "dim num_heads kernel_size dilation "
         "is_causal rel_pos_bias qkv_bias qk_scale attn_drop proj_drop use_experimental_ops"),
    ],
)  # fmt: skip
def test_installed_names_have_the_arguments_of_the_release(version, path, name, arguments):
    top = vecina.compat.install("natten", version)
    assert importlib.import_module("natten") is top and top.__version__ == version
    module = importlib.import_module(f"natten.{path}") if path else top
    assert list(inspect.signature(getattr(module, name)).parameters) == arguments.split()


def test_releases_without_a_name_do_not_have_it():
    assert not hasattr(vecina.compat.for_version("0.21.6"), "na1d_qk")
    assert not hasattr(vecina.compat.for_version("0.14.6"), "na1d")
    assert hasattr(vecina.compat.for_version("0.17.1"), "is_fna_enabled")
    with pytest.raises(ValueError, match="0.13"):
        vecina.compat.install("natten", "0.13.0")
    with pytest.raises(ValueError, match="'flash'"):
        vecina.compat.install("flash")
    with pytest.raises(ValueError, match="natten_mps has no versions"):
        vecina.compat.install("natten_mps", "0.3.3")


_SINCE_20 = (
    "_environment _libnatten attn_merge backends backends.blackwell_fmha "
    "backends.blackwell_fna backends.configs backends.configs.checks backends.configs.cutlass "
    "backends.configs.cutlass.fna_backward_128x128 "
    "backends.configs.cutlass.fna_backward_128x64 backends.configs.cutlass.fna_backward_64x64 "
    "backends.configs.cutlass.fna_forward_32x128 backends.configs.cutlass.fna_forward_64x128 "
    "backends.configs.cutlass.fna_forward_64x64 backends.configs.cutlass_blackwell "
    "backends.configs.cutlass_hopper backends.configs.flex backends.flex backends.fmha "
    "backends.fna backends.hopper_fmha backends.hopper_fna backends.reference context "
    "functional modules profiler profiling_utils profiling_utils.dry_run "
    "profiling_utils.formatting profiling_utils.ops profiling_utils.pretty_printer "
    "profiling_utils.problem profiling_utils.profiling token_permute types utils utils.checks "
    "utils.device utils.log utils.tensor utils.testing utils.tuples version"
)
#: Every submodule of a release, as its sources have them.
SUBMODULES = {
    ("natten", "0.14.6"): (
        "flops functional natten1d natten2d"
    ),
    ("natten", "0.15.1"): (
        "flops functional natten1d natten2d natten3d nested ops utils utils.tensor "
        "utils.testing utils.typing"
    ),
    ("natten", "0.17.5"): (
        "autotuner autotuner.configs autotuner.configs.fna_backward_128x128 "
        "autotuner.configs.fna_backward_128x64 autotuner.configs.fna_backward_64x64 "
        "autotuner.configs.fna_forward_32x128 autotuner.configs.fna_forward_64x128 "
        "autotuner.configs.fna_forward_64x64 autotuner.fna_backward autotuner.fna_forward "
        "autotuner.misc context experimental flex flops functional na1d na2d na3d natten1d "
        "natten2d natten3d nested ops types utils utils.checks utils.log utils.misc "
        "utils.tensor utils.testing"
    ),
    ("natten", "0.20.1"): _SINCE_20,
    ("natten", "0.21.6"): (
        f"{_SINCE_20} _libnatten.stubs _libnatten.torch_wrappers "
        "backends.configs.cutlass.backward_knobs "
        "token_permute.cutlass_impl token_permute.frontend token_permute.torch_impl "
        "utils.dtype utils.environment utils.varlen"
    ),
    ("natten_mps", None): (
        "_core _core._metal_shaders _core.inverse_maps _core.metal _core.ops _core.pure "
        "_torch_ops autograd autograd._factory autograd.na1d autograd.na2d autograd.na3d "
        "compat compat.v014 compat.v015 compat.v017 compat.v020 extras extras.allin1 "
        "extras.allin1._metal_shaders extras.allin1.functional extras.allin1.metal "
        "extras.allin1.reference_impl functional merge nn nn.na1d nn.na2d nn.na3d "
        "support_matrix utils utils.params utils.window version"
    ),
    ("natten_mlx", None): (
        "_core _core._forward_tuning _core._metal_sources _core._nanobind_impl "
        "_core._nanobind_metal _core.fast_metal _core.nanobind _core.ops _core.pure autograd "
        "autograd.na1d autograd.na2d autograd.na3d autograd.split compat compat.v014 "
        "compat.v015 compat.v017 compat.v020 extras extras.allin1 extras.allin1.functional "
        "extras.allin1.functional_metal extras.allin1.kernels extras.allin1.reference_impl "
        "functional merge nn nn.na1d nn.na2d nn.na3d support_matrix utils utils.params "
        "utils.window version"
    ),
}


@pytest.mark.parametrize("name, version", SUBMODULES)
def test_every_submodule_of_the_release_is_installed(name, version):
    top = vecina.compat.install(name, version)
    for path in SUBMODULES[name, version].split():
        module = importlib.import_module(f"{name}.{path}")
        assert not getattr(module, "__file__", None) or "vecina" in module.__file__
        if path == "version":
            assert module.__version__ == top.__version__
        elif not [n for n in dir(module) if not n.startswith("_")]:
            with pytest.raises(AttributeError, match=f"{path}.no_such: .*own kernels"):
                module.no_such
    with pytest.raises(ImportError):
        importlib.import_module(f"{name}.no_such")


def test_names_stand_where_the_release_has_them():
    vecina.compat.install("natten")
    from natten import na2d
    from natten.attn_merge import merge_attentions
    from natten.backends.flex import flex_fna_generic, na1d_flex
    from natten.backends.fna import can_run_cutlass_fna, cutlass_fna_generic
    from natten.backends.hopper_fmha import cutlass_hopper_fmha
    from natten.functional import merge_attentions as same
    from natten.token_permute.frontend import token_permute_operation
    from natten.utils.device import get_device_cc, is_cpu
    from natten.utils.environment import parse_env_flag, parse_env_int
    from natten.utils.tuples import ceil_div_tuple, create_dim_from_int, mul_tuple, sub_tuple

    query, key, value = qkv(1, 6, 8, 2, 4)
    wanted = na2d(query, key, value, 3)
    for generic in (cutlass_fna_generic, flex_fna_generic):
        torch.testing.assert_close(generic(query, key, value, 3), wanted, rtol=0, atol=0)
    flat = [t.flatten(1, 2) for t in (query, key, value)]
    torch.testing.assert_close(na1d_flex(*flat, 48), cutlass_hopper_fmha(*flat))
    assert merge_attentions is same and can_run_cutlass_fna(query, key, value)
    assert token_permute_operation(query, (2, 2))[1] == (6, 8)
    assert is_cpu(query.device) and get_device_cc(query.device) == 0
    assert ceil_div_tuple((7, 8), (2, 4)) == (4, 2) and create_dim_from_int(2, 5) == (5, 5)
    assert mul_tuple((2, 3), (4, 5)) == (8, 15) and sub_tuple((2, 3), (1, 1)) == (1, 2)
    with pytest.MonkeyPatch.context() as patch:
        for text, flag, number in (("1", True, 1), ("0", False, 0), ("x", True, 7), ("", True, 7)):
            patch.setenv("VECINA_TEST", text)
            assert parse_env_flag("VECINA_TEST", True) is flag
            assert parse_env_int("VECINA_TEST", 7) == number
    vecina.compat.install("natten", "0.17.5")
    from natten.natten2d import NeighborhoodAttention2D
    from natten.utils.checks import check_kernel_size_arg

    assert NeighborhoodAttention2D is importlib.import_module("natten.na2d").NeighborhoodAttention2D
    assert check_kernel_size_arg(2, 3) == (3, 3)
    vecina.compat.install("natten_mps")
    from natten_mps.nn.na3d import NeighborhoodAttention3D
    from natten_mps.utils import get_window_start, normalize_tuple_param

    assert NeighborhoodAttention3D(8, 2, 3).rank == 3
    assert normalize_tuple_param(3, 2, "x") == (3, 3) and get_window_start(4, 7, 3, 2) == 2


def test_unmodified_code_and_reading_no_framework():
    code = (
        "import sys, vecina.compat; assert 'torch' not in sys.modules; "
        "vecina.compat.install('natten', version='0.17.5'); "
        "from natten.functional import na2d_av, na2d_qk; import natten.context; "
        "from natten import NeighborhoodAttention2D as Layer, has_cuda; import torch; "
        "assert Layer(8, 2, 3)(torch.zeros(1, 4, 4, 8)).shape == (1, 4, 4, 8)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_attention_and_packed_sequences():
    natten = vecina.compat.for_version("0.21")
    query, key, value = randn(1, 9, 2, 4), *qkv(1, 12, 2, 4)[:2]
    lengths = [torch.tensor(n, dtype=torch.int32) for n in ([4, 5], [7, 5])]
    whole, lse = natten.attention(
        query, key, value, is_causal=True, seqlens_Q=lengths[0], seqlens_KV=lengths[1],
        return_lse=True,
    )  # fmt: skip
    first = vt.attention(query[:, :4], key[:, :7], value[:, :7], True, return_lse=True)
    torch.testing.assert_close(whole[:, :4], first[0], rtol=0, atol=0)
    torch.testing.assert_close(lse[:, :4], first[1], rtol=0, atol=0)
    sums = importlib.import_module("vecina.compat.natten.utils.varlen").generate_varlen_parameters(
        query, key, value, *lengths
    )
    assert sums[0].tolist() == [0, 4, 9] and sums[1].tolist() == [0, 7, 12] and sums[2:] == (5, 7)
    names = [f"{what}_{side}" for what in ("cumulative_seqlen", "max_seqlen") for side in ("Q", "KV")]
    packed = dict(zip(names, sums))
    torch.testing.assert_close(natten.attention(query, key, value, True, **packed), whole)
    with pytest.raises(ValueError, match="belong together"):
        natten.attention(query, key, value, seqlens_Q=lengths[0])
    with pytest.raises(ValueError, match="rise from 0 to at most 9"):
        natten.attention(query, key, value, **{**packed, "cumulative_seqlen_Q": sums[1]})
    compiled = torch.compile(
        lambda q, k, v, packed: natten.attention(q, k, v, True, **packed), fullgraph=True,
        backend="aot_eager",
    )  # fmt: skip
    torch.testing.assert_close(compiled(query, key, value, packed), whole)
    for name in names:
        message = "belong together" if name.startswith("cumulative") else "max_seqlen_Q and _KV are"
        with pytest.raises(ValueError, match=message):
            natten.attention(query, key, value, **{**packed, name: None})
        with pytest.raises(Exception, match=f"ValueError.*{message}"):  # of the compiler
            compiled(query, key, value, {**packed, name: None})
    # Of lengths and sums, the lengths count, compiled or not.
    one = [torch.tensor([n], dtype=torch.int32) for n in (9, 12)]
    both = dict(packed, seqlens_Q=one[0], seqlens_KV=one[1])
    with_breaks = torch.compile(
        lambda given: natten.attention(query, key, value, True, **given), backend="eager"
    )
    for function in (lambda given: natten.attention(query, key, value, True, **given), with_breaks):
        torch.testing.assert_close(function(both), vt.attention(query, key, value, True))
    # Tokens after the last sequence, and sequences without queries or keys.
    bounds = [0, 4, 4, 6, 8], [0, 3, 5, 5, 9]
    sums = [torch.tensor(b, dtype=torch.int32) for b in bounds]
    packed = dict(zip(names, (*sums, 4, 4)))
    query.requires_grad_()
    output, lse = natten.attention(query, key, value, return_lse=True, **packed)
    for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:]):
        if a < b and c < d:
            alone = vt.attention(query[:, a:b], key[:, c:d], value[:, c:d])
            torch.testing.assert_close(output[:, a:b], alone)
    blank = [4, 5, 8]
    assert not output[:, blank].any() and torch.isneginf(lse[:, blank]).all()
    assert torch.isfinite(lse[:, [0, 1, 2, 3, 6, 7]]).all()
    (grad,) = torch.autograd.grad(output.sum(), query)
    assert not grad[:, blank].any() and grad[:, :4].any()
    nothing = dict(zip(names, (*(s * 0 for s in sums), 0, 0)))
    assert not natten.attention(query, key, value, **nothing).any()
    no_keys = {**packed, "cumulative_seqlen_KV": sums[1] * 0, "max_seqlen_KV": 0, "max_seqlen_Q": 0}
    assert not natten.attention(query, key[:, :0], value[:, :0], **no_keys).any()
    query = query.detach()
    parts = [natten.attention(query, part, part, return_lse=True) for part in (key, value)]
    merged = natten.merge_attentions(*zip(*parts))
    torch.testing.assert_close(merged, vt.merge_attentions(*map(list, zip(*parts))))
    leaves = [[t.detach().requires_grad_() for t in some] for some in zip(*parts)]
    found = natten.merge_attentions(*leaves)
    torch.testing.assert_close(found, merged)
    (found[0].square().sum() + found[1].sum()).backward()
    again = [[t.detach().clone().requires_grad_() for t in some] for some in leaves]
    wanted = vt.merge_attentions(*again, backend="reference")
    (wanted[0].square().sum() + wanted[1].sum()).backward()
    for mine, his in zip(leaves[0] + leaves[1], again[0] + again[1]):
        torch.testing.assert_close(mine.grad, his.grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="two or more"):
        natten.merge_attentions([whole], [lse])


def test_packed_sequences_whose_lengths_cannot_be_looked_at(monkeypatch):
    from vecina.compat import _operations

    natten = vecina.compat.for_version("0.21")
    query, key, value = qkv(1, 9, 2, 4)
    sums = torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = dict(
        cumulative_seqlen_Q=sums, cumulative_seqlen_KV=sums, max_seqlen_Q=5, max_seqlen_KV=5
    )
    wanted = natten.attention(query, key, value, return_lse=True, **packed)
    monkeypatch.setattr(_operations, "_is_capturing", lambda tensor: True)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    found = natten.attention(query, key, value, return_lse=True, **packed)
    with pytest.raises(ValueError, match="a CUDA graph cannot hold; give cumulative_seqlen_Q"):
        natten.attention(query, key, value, seqlens_Q=sums.diff(), seqlens_KV=sums.diff())
    monkeypatch.undo()
    torch.testing.assert_close(found, wanted)


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


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_heads_first_halves(rank):
    tokens = (6, 5, 5)[:rank]
    query, key, value = qkv(2, *tokens, 3, 4, dtype=torch.float64)
    bias = randn(3, *(5,) * rank, dtype=torch.float64)
    wanted = vt.neighborhood_attention(query, key, value, 3, scale=1.0, bias=bias)
    tensors = [heads_first(t) for t in (query, key, value)]
    ways = [("0.17.5", "na{}d_qk", "na{}d_av", (3, 1), dict(rpb=bias))]
    sizes = (3, 3, 1, 1) if rank == 3 else (3, 1)
    ways.append(("0.15.1", "na{}d_qk_with_bias", "na{}d_av", (bias, *sizes), {}))
    for version in ("0.14.6",) * (rank < 3) + ("0.17.0",):
        ways.append((version, "natten{}dqkrpb", "natten{}dav", (bias, *sizes), {}))
    for version, qk, av, arguments, keywords in ways:
        module = vecina.compat.for_version(version).functional
        logits = getattr(module, qk.format(rank))(*tensors[:2], *arguments, **keywords)
        assert logits.shape == (2, 3, *tokens, 3**rank)
        sizes_of_av = [a for a in arguments if not torch.is_tensor(a)]
        output = getattr(module, av.format(rank))(logits.softmax(-1), tensors[2], *sizes_of_av)
        torch.testing.assert_close(output, heads_first(wanted))


def test_halves_with_additional_tokens_and_causality():
    functional = vecina.compat.for_version("0.17.5").functional
    query, key, value = qkv(1, 7, 2, 4)
    keys, values = qkv(1, 3, 2, 4)[:2]
    wanted = vt.na1d(query, key, value, 3, 1, 2, True, 1.0, additional_keys=keys,
                     additional_values=values)  # fmt: skip
    first = [heads_first(t) for t in (query, key, value, keys, values)]
    logits = functional.na1d_qk(*first[:2], 3, 2, first[3], True)
    assert logits.shape[-1] == 6 and torch.isinf(logits[..., 0, 1:3]).all()
    output = functional.na1d_av(logits.softmax(-1), first[2], 3, 2, first[4], True)
    torch.testing.assert_close(output, heads_first(wanted))
    with pytest.raises(RuntimeError, match="must be odd"):
        functional.na1d_qk(*first[:2], 4)
    with pytest.raises(NotImplementedError, match="bias with is_causal"):
        functional.na1d_qk(*first[:2], 3, is_causal=True, rpb=torch.zeros(2, 5))


@pytest.mark.parametrize("version", ["0.15.1", "0.17.5"])
def test_halves_of_nested_tensors(version):
    functional = vecina.compat.for_version(version).functional
    samples = [[heads_first(t) for t in qkv(*n, 3, 4)] for n in ((1, 6, 5), (2, 4, 9))]
    more = [[heads_first(t) for t in qkv(n, 2, 3, 4)[:2]] for n in (1, 2)]
    nested = [torch.nested.nested_tensor([s[i] for s in samples]) for i in range(3)]
    nested_more = [torch.nested.nested_tensor([m[i] for m in more]) for i in range(2)]
    logits = functional.na2d_qk(*nested[:2], 3, 1, nested_more[0])
    weights = torch.nested.nested_tensor([w.softmax(-1) for w in logits.unbind()])
    output = functional.na2d_av(weights, nested[2], 3, 1, nested_more[1])
    assert logits.is_nested and output.is_nested
    for part, mine, (query, key, value), (keys, values) in zip(
        output.unbind(), logits.unbind(), samples, more
    ):
        alone = functional.na2d_qk(query, key, 3, 1, keys)
        torch.testing.assert_close(mine, alone)
        wanted = functional.na2d_av(alone.softmax(-1), value, 3, 1, values)
        torch.testing.assert_close(part, wanted)
    with pytest.raises(ValueError, match="all tensors must be nested"):
        functional.na2d_qk(nested[0], samples[0][1], 3, 1)
    if version == "0.17.5":
        with pytest.raises(NotImplementedError, match="nested and sparse"):
            functional.na2d(*nested, 3)


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


def test_flops_of_a_trace():
    from vecina.compat import _flops

    flops = vecina.compat.for_version("0.17.5").flops
    query, key, value = qkv(1, 6, 8, 2, 4)

    def call(query, key, value):
        window = ((5, 3), 1, (1, 2), (True, False))
        weights = vt.qk(query, key, *window)
        return vt.na2d(query, key, value, *window), vt.av(weights, value, *window)

    class Traced(torch.nn.Module):
        forward = staticmethod(call)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, _ = torch.jit._get_trace_graph(Traced(), (query, key, value))
    shape, window = tuple(query.shape), ((5, 3), (1, 2), (True, False))
    half = 48 * 2 * 15 * 4  # tokens x heads x window x head_dim
    counts = dict(forward=2 * half, qk=half, av=half)
    found = {
        node.kind(): _flops._HANDLES[node.kind()](list(node.inputs()), list(node.outputs()))
        for node in graph.nodes()
        if node.kind() in _flops._HANDLES
    }
    assert found == {f"vecina::{name}": count for name, count in counts.items()}
    assert flops.na_qk_flop_count(shape, shape, *window, True, return_macs=True) == half
    assert flops.na_av_flop_count(shape[:-1] + (15,), shape, *window, True) == 2 * half
    assert flops.fna_flop_count(shape, shape, shape, *window, True) == 4 * half
    with pytest.raises(ValueError, match="one shape"):
        flops.fna_flop_count(shape, shape, shape[1:], *window, True)


@pytest.mark.skipif(importlib.util.find_spec("fvcore") is None, reason="needs fvcore")
def test_flops_by_fvcore():
    vecina.compat.install("natten", "0.17.5")
    from natten import NeighborhoodAttention2D
    from natten.flops import get_flops

    tokens, dim, window = 6 * 8, 8, 5 * 3
    layer = NeighborhoodAttention2D(dim, 2, (5, 3), (1, 2))
    wanted = tokens * dim * (3 * dim + dim) + 2 * tokens * dim * window
    assert get_flops(layer, randn(1, 6, 8, dim), disable_warnings=True) == wanted


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


@pytest.mark.parametrize("version", ["0.14.6", "0.15.1", "0.17.5"])
def test_old_modules_train_their_bias(version):
    kind = vecina.compat.for_version(version).NeighborhoodAttention2D
    named = {"rel_pos_bias": True} if version == "0.17.5" else {}
    torch.manual_seed(0)
    module = kind(8, 2, 3, dilation=2, **named)
    keys = {"rpb", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(module.state_dict()) == keys
    assert module.rpb.shape == (2, 5, 5)
    ours = vt.NeighborhoodAttention2D(8, 2, 3, dilation=2, rel_pos_bias=True, backend="reference")
    ours.load_state_dict(module.state_dict())
    x = randn(1, 6, 7, 8)
    for layer in (module, ours):
        layer(x).square().sum().backward()
    for mine, his in zip(ours.parameters(), module.parameters()):
        torch.testing.assert_close(his.grad, mine.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), ours(x))
    if version == "0.17.5":
        with pytest.raises(NotImplementedError, match="rel_pos_bias with is_causal"):
            kind(8, 2, 3, is_causal=True, rel_pos_bias=True)
    else:
        small = x[:, :4]  # padded to the window
        assert module(small).shape == small.shape
        with pytest.raises(AssertionError, match="kernel_size 4"):
            kind(8, 2, 4)


def test_modules_of_today_load_strictly():
    kind = vecina.compat.for_version("0.21").NeighborhoodAttention1D
    module = kind(8, 2, 3, 1, 2, False, False, 0.5, 0.1)
    assert module.scale == 0.5 and module.proj_drop.p == 0.1 and module.qkv.bias is None
    vt.NeighborhoodAttention1D(8, 2, 3, qkv_bias=False).load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match="kernel_size"):
        kind(8, 2, 1)


#: release -> arguments of its module and the shapes of its state dict, as the release has them
STATES = {
    **{f"{version} {rank}d": (
        version, rank, (8, 2, 3), {},
        {"rpb": (2,) + (5,) * rank} if version in ("0.14.6", "0.15.1") else {},
    ) for version, ranks in (("0.14.6", 2), ("0.15.1", 3), ("0.17.5", 3), ("0.20.1", 3),
                             ("0.21.6", 3)) for rank in range(1, ranks + 1)},
    **{f"0.17.5 {rank}d rpb": (
        "0.17.5", rank, (8, 2, 3), {"rel_pos_bias": True}, {"rpb": (2,) + (5,) * rank},
    ) for rank in (1, 2, 3)},
}  # fmt: skip
LINEAR = {"qkv.weight": (24, 8), "qkv.bias": (24,), "proj.weight": (8, 8), "proj.bias": (8,)}


@pytest.mark.parametrize("name", STATES)
def test_state_dicts_of_every_release_load_strictly(name):
    version, rank, arguments, named, more = STATES[name]
    kind = f"NeighborhoodAttention{rank}D"
    state = {key: randn(*shape) for key, shape in {**LINEAR, **more}.items()}
    module = getattr(vecina.compat.for_version(version), kind)(*arguments, **named)
    ours = getattr(vt, kind)(*arguments, rel_pos_bias="rpb" in more)
    x = randn(1, *(6, 5, 4)[:rank], 8)
    outputs = []
    for layer in (module, ours):
        layer.load_state_dict(state)  # strict
        assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {**LINEAR, **more}
        with torch.no_grad():
            outputs.append(layer.eval()(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.skipif(importlib.util.find_spec("natten_mps") is None, reason="needs natten-mps")
@pytest.mark.parametrize("heads_kv", [None, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_state_dicts_of_natten_mps_itself(rank, heads_kv):
    real = importlib.import_module("natten_mps.nn")
    kind = f"NeighborhoodAttention{rank}D"
    theirs = getattr(real, kind)(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    assert not type(theirs).__module__.startswith("vecina")
    ours = getattr(vt, kind)(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    ported = getattr(importlib.import_module("vecina.compat.natten_mps"), kind)
    ported = ported(16, 4, 3, num_kv_heads=heads_kv, is_causal=True).eval()
    x = randn(2, *(7, 5, 4)[:rank], 16)
    with torch.no_grad():
        wanted = theirs(x)
        for layer in (ours, ported):
            layer.load_state_dict(theirs.state_dict())
            torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
            theirs.load_state_dict(layer.state_dict())


def test_samples_on_a_device_are_one_call(monkeypatch):
    """With tensors of a device that have no memory: no GPU is needed to count."""
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from vecina.compat import _operations

    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), keywords=None):
            if function.namespace == "vecina":
                self.names.append(function.__name__)
            return function(*args, **(keywords or {}))

        def since(self):
            names, self.names = self.names, []
            return names

    natten = vecina.compat.for_version("0.21")
    port = importlib.import_module("vecina.compat.natten_mps")
    sizes = {1: torch.tensor([9, 5]), 2: torch.tensor([[4, 3], [3, 5]])}
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        for rank, lengths in sizes.items():
            padded = torch.empty(2, *((9,), (4, 5))[rank - 1], 2, 4, device="cuda")
            output = getattr(port, f"na{rank}d_varlen")(padded, padded, padded, lengths, 3)
            assert output.shape == padded.shape and output.is_cuda
            assert calls.since() == ["forward.default"]
        # While a graph is captured the lengths are not looked at.
        monkeypatch.setattr(_operations, "_is_capturing", lambda tensor: tensor.is_cuda)
        query, key = (torch.empty(1, n, 2, 4, device="cuda") for n in (9, 12))
        sums = [torch.empty(3, dtype=torch.int32, device="cuda") for _ in range(2)]
        output, lse = natten.attention(
            query, key, key, cumulative_seqlen_Q=sums[0], cumulative_seqlen_KV=sums[1],
            max_seqlen_Q=5, max_seqlen_KV=7, return_lse=True,
        )  # fmt: skip
        assert output.shape == query.shape and lse.shape == query.shape[:-1]
        assert calls.since() == ["forward.default"]
        output.requires_grad_()
        for merge in (natten.merge_attentions, port.merge_attentions):
            merged, _ = merge([output, output], [lse, lse])
            assert merged.requires_grad and calls.since() == ["merge.default"]


def test_merging_with_lse_of_half_logits():
    port = importlib.import_module("vecina.compat.natten_mps")
    outputs = [t.half() for t in qkv(2, 9, 2, 4)[:2]]
    lses = [t.half().requires_grad_() for t in qkv(2, 9, 2)[:2]]
    merged, lse = port.merge_attentions(outputs, lses)
    wanted = vt.merge_attentions(outputs, [t.float() for t in lses])
    torch.testing.assert_close((merged, lse), wanted, rtol=0, atol=0)
    assert all(g.dtype == torch.float16 for g in torch.autograd.grad(lse.sum(), lses))


def test_natten_mps():
    port = vecina.compat.install("natten_mps")
    query, key, value = qkv(2, 9, 2, 4)
    got = port.na1d(query, key, value, 3, 2, 1, True, None, True)
    wanted = vt.na1d(query, key, value, 3, is_causal=True, output_stride=2, return_lse=True)
    for mine, his in zip(got, wanted):
        torch.testing.assert_close(mine, his, rtol=0, atol=0)
    logits = port.na1d_qk(query, key, 3, stride=2, is_causal=True)  # no scale by default
    assert torch.isinf(logits[:, 0, :, :2]).all() and torch.isfinite(logits[:, 0, :, 2]).all()
    output = port.na1d_av((logits / 2).softmax(-1), value, 3, stride=2, is_causal=True)
    torch.testing.assert_close(output, wanted[0])
    sizes = torch.tensor([9, 5])
    varlen = port.na1d_varlen(query, key, value, sizes, 3)
    assert not varlen[1, 5:].any()
    alone = vt.na1d(*(t[1:, :5] for t in (query, key, value)), 3)
    torch.testing.assert_close(varlen[1:, :5], alone)
    with pytest.raises(ValueError, match="seq_lens holds"):
        port.na1d_varlen(query, key, value, torch.tensor([9, 2]), 3)
    layer = port.nn.NeighborhoodAttention1D(8, 2, 3, stride=2, num_kv_heads=1)
    assert layer(randn(1, 9, 8)).shape == (1, 5, 8) and "kv_proj.weight" in layer.state_dict()
    same = port.NeighborhoodAttention1D(8, 2, 3).eval()
    x = randn(2, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(same(x, sizes)[1:, :5], same(x[1:, :5]))
    rpb = randn(2, 5)
    fused = port.extras.allin1.na1d_qk_rpb(query, key, rpb, 3, scale=0.5)
    torch.testing.assert_close(fused, vt.qk(query, key, 3, scale=0.5, bias=rpb))
    from natten_mps.utils.window import get_pb_start, get_window_end, get_window_start

    assert [get_window_start(i, 7, 3, 2) for i in range(7)] == [0, 1, 0, 1, 2, 1, 2]
    assert [get_window_start(i, 10, 7, 2) for i in (1, 5, 9)] == [1, 1, -3]  # does not fit
    assert get_window_end(6, 7, 3, 2) == 6 and get_pb_start(6, 7, 3, 2) == 0
    old = port.compat.for_version("0.14.6")
    assert old.NeighborhoodAttention2D(dim=8, kernel_size=3, num_heads=2).num_heads == 2


def test_backends_of_natten_mps():
    port = vecina.compat.install("natten_mps")
    assert port.get_backend() == "pure" and not port.has_metal()
    with pytest.raises(ValueError, match="'nonesuch'"):
        port.set_backend("nonesuch")
    with pytest.raises(NotImplementedError, match="'metal'"):
        port.set_backend("metal")
    from natten_mps._core import metal, ops

    assert not metal.is_available()
    with pytest.raises(ValueError, match="no function na1d_forward"):
        ops.register_backend("mine", ops)

    class Mine:
        """A plug-in; only the fused 1-D call is used here."""

    for name in ops._FUNCTIONS:
        setattr(Mine, name, None)
    Mine.na1d_forward = staticmethod(lambda q, k, v, *rest: (q, *rest))
    ops.register_backend("mine", Mine)
    try:
        port.set_backend("mine")
        query, key, value = qkv(1, 8, 2, 4)
        assert port.na1d(query, key, value, 3)[1:] == ((3,), (1,), (1,), (False,), 0.5)
    finally:
        port.set_backend("auto")
        del ops._choice.modules["mine"]
    assert set(port.get_support_matrix()) == {"pure", "metal"}


@pytest.mark.parametrize("name", ["pure", "fast_metal", "nanobind"])
def test_backends_of_natten_mlx(name):
    """All of them can be chosen, as there, and are vecina's; natten-mps' choice is its own."""
    port = vecina.compat.install("natten_mlx")
    other = vecina.compat.install("natten_mps")
    query, key, value = (t.numpy() for t in qkv(1, 9, 2, 4))
    wanted = port.na1d(query, key, value, 3)
    try:
        port.set_backend(name)
        assert port.get_backend() == name and other.get_backend() == "pure"
        np.testing.assert_array_equal(port.na1d(query, key, value, 3), wanted)
    finally:
        port.set_backend("auto")
    assert port.get_backend() == "pure" and not port.has_metal() and not port.has_nanobind()
    with pytest.raises(ValueError, match="'metal' is none of auto, pure, fast_metal, nanobind"):
        port.set_backend("metal")
    from natten_mlx._core import fast_metal, nanobind

    assert not fast_metal.is_available() and not nanobind.is_available()


@pytest.mark.parametrize(
    "port, given, chosen",
    [
        ("natten_mps", "metal", "metal"),
        ("natten_mps", "pure", "pure"),
        ("natten_mps", "fast_metal", "pure"),  # natten-mlx's
        ("natten_mlx", "fast_metal", "fast_metal"),
        ("natten_mlx", "no", "pure"),
    ],
)
def test_the_environment_names_a_backend_of_the_ports(port, given, chosen):
    code = (
        f"import vecina.compat; vecina.compat.install('{port}'); import {port}; "
        f"print({port}.get_backend())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "NATTEN_BACKEND": given},
    )  # fmt: skip
    assert found.stdout.split() == [chosen]


def test_natten_mlx_on_arrays():
    port = importlib.import_module("vecina.compat.natten_mlx")
    query, key, value = (t.numpy() for t in qkv(1, 9, 2, 4))
    output, lse = port.na1d(query, key, value, 3, stride=2, return_lse=True)
    logits = port.na1d_qk(query, key, 3, stride=2)  # scaled by default
    np.testing.assert_allclose(np.log(np.exp(logits).sum(-1)), lse, atol=1e-5)
    weights = np.exp(logits - lse[..., None])
    np.testing.assert_allclose(port.na1d_av(weights, value, 3, stride=2), output, atol=1e-5)
    varlen = port.na1d_varlen(query, key, value, np.array([5]), 3)
    assert not varlen[:, 5:].any() and varlen[:, :5].any()
    assert set(port.get_support_matrix()) == {"pure", "fast_metal", "nanobind"}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "layout, tile, dilation",
    [((7,), (2,), (3,)), ((5, 6), (2, 3), (2, 1)), ((3, 4, 5), (2,) * 3, None)],
)
def test_token_permutation(layout, tile, dilation, flip):
    from vecina.compat import natten

    permute = natten.token_permute.token_permute_operation
    unpermute = natten.token_permute.token_unpermute_operation
    tensor = torch.randn(2, *layout, 2, 3)
    permuted, given, group = permute(tensor, tile, dilation, flip)
    assert given == layout and permuted.shape[1] == math.prod(group)
    assert torch.equal(unpermute(permuted, layout, tile, dilation, flip), tensor)
    # Token by token: where each must have come to.
    steps = dilation or (1,) * len(layout)
    order = range(len(layout))[:: -1 if flip else 1]

    def rank_in(places, sizes):  # row-major over the axes in their order
        number = 0
        for axis in order:
            number = number * sizes[axis] + places[axis]
        return number

    tiles = [g // t for g, t in zip(group, tile)]
    for token in itertools.product(*map(range, layout)):
        groups = [n % d for n, d in zip(token, steps)]
        inner = [n // d for n, d in zip(token, steps)]
        at = rank_in([n // t for n, t in zip(inner, tile)], tiles) * math.prod(tile)
        at += rank_in([n % t for n, t in zip(inner, tile)], tile)
        row = math.prod(steps) + rank_in(groups, steps)  # of the second batch
        assert torch.equal(permuted[row, at], tensor[(1, *token)])
    # As 0.20 had it: the groups with the heads.
    old = vecina.compat.for_version("0.20.1").token_permute
    padded, padding = old.maybe_pad(tensor, tile, dilation)
    together, shape, rest = old.token_permute(padded, tile, dilation, flip)
    groups = math.prod(steps)
    apart = together.unflatten(2, (groups, 2)).movedim(2, 1).flatten(0, 1)
    assert shape == group and torch.equal(apart, permuted)
    whole = old.token_unpermute(together, tile, shape, rest, dilation, flip)
    assert torch.equal(old.maybe_unpad(whole, padding), tensor)
    with pytest.raises(ValueError, match="maybe_pad"):
        old.token_permute(padded[:, 1:], tile, dilation, flip)
    with pytest.raises(ValueError, match="tiles of"):
        old.token_unpermute(together, tile, shape, [n + 1 for n in rest], dilation, flip)
    with pytest.raises(ValueError, match="dimensions"):
        permute(tensor[0, 0, 0], tile)
    with pytest.raises(ValueError, match="tile_shape"):
        permute(tensor, (*tile, 2))
    with pytest.raises(ValueError, match="groups"):
        unpermute(permuted[:, 1:], layout, tile, dilation, flip)


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
