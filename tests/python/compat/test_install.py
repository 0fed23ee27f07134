# SPDX-License-Identifier: MIT
"""Names, arguments and submodules of each release, as vecina.compat installs them."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from inputs import qkv  # noqa: E402

import vecina.compat  # noqa: E402


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


def _apart(tensor):
    """The same numbers, with a last dimension that does not lie in one piece."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("name, version", [
    ("natten", "0.21.6"), ("natten", "0.17.5"), ("natten", "0.14.6"), ("natten_mps", None),
])  # fmt: skip
def test_tensors_are_copied_where_the_release_copies(name, version):
    top = vecina.compat.install(name, version)
    tensors = query, key, value = qkv(2, 7, 9, 2, 4)
    weights, lses = torch.randn(2, 7, 9, 2, 9), torch.randn(2, 2, 9, 2)
    more = [t.flatten(1, 2)[:, :3] for t in tensors[1:]]
    flat = [t.flatten(1, 2) for t in tensors]
    if name == "natten_mps":
        calls = {
            "na2d": (lambda *t: top.na2d(*t[:3], 3, additional_keys=t[3], additional_values=t[4]),
                     (*tensors, *more)),
            "qk": (lambda q, k: top.na2d_qk(q, k, 3), (query, key)),
            "av": (lambda w, v: top.na2d_av(w, v, 3), (weights, value)),
        }  # fmt: skip
    elif version == "0.21.6":
        calls = {
            "na2d": (lambda *t: top.na2d(*t[:3], 3, additional_keys=t[3], additional_values=t[4]),
                     (*tensors, *more)),
            "attention": (lambda *t: top.attention(*t), flat),
            "reference": (lambda *t: top.backends.reference.na2d_reference(*t, 3), tensors),
            "merge": (lambda a, b, c, d: top.merge_attentions([a, b], [c, d])[0],
                      (flat[0][:, :9], flat[1][:, :9], *lses)),
        }  # fmt: skip
    else:
        functional = importlib.import_module("natten.functional")
        qk = functional.na2d_qk if version == "0.17.5" else functional.natten2dqk
        av = functional.na2d_av if version == "0.17.5" else functional.natten2dav
        first = [t.movedim(3, 1) for t in (*tensors, weights)]
        calls = {
            "qk": (lambda q, k: qk(q, k, 3, 1), first[:2]),
            "av": (lambda w, v: av(w, v, 3, 1), first[:1:-1]),
        }
        if version == "0.17.5":
            calls["na2d"] = (lambda *t: functional.na2d(*t, 3), tensors)
    for call, inputs in calls.values():
        assert _apart(inputs[0]).stride(-1) != 1
        torch.testing.assert_close(call(*map(_apart, inputs)), call(*inputs))


@pytest.mark.parametrize("name, version, known", [
    ("natten", "0.14.6", "0.14.6"), ("natten", None, "0.21.6"), ("natten_mps", None, "0.3.3"),
])  # fmt: skip
def test_what_looks_for_the_release_finds_it(name, version, known):
    top = vecina.compat.install(name, version)
    assert importlib.metadata.version(name) == importlib.metadata.version(name.upper()) == known
    assert name in importlib.metadata.packages_distributions()
    assert importlib.util.find_spec(name).name == name and "vecina" in top.__file__
    assert "NeighborhoodAttention1D" in top.__all__
    assert all(hasattr(top, each) for each in top.__all__)
    del top.NeighborhoodAttention1D
    assert importlib.reload(top) is top and hasattr(top, "NeighborhoodAttention1D")
    assert top.__version__ == known and importlib.import_module(f"{name}.functional")
    del sys.modules[name]  # as who wants the release itself again
    assert importlib.util.find_spec(name) is None or "vecina" not in str(
        importlib.util.find_spec(name).origin
    )


def test_hugging_face_takes_the_release():
    pytest.importorskip("transformers.models.dinat")
    code = (
        "import vecina.compat; vecina.compat.install('natten', version='0.14.6'); import torch; "
        "from transformers import DinatConfig, DinatModel; "
        "config = DinatConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 4], kernel_size=3, "
        "dilations=[[1, 2], [1, 1]]); output = DinatModel(config)(torch.randn(1, 3, 64, 64)); "
        "output.last_hidden_state.sum().backward()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
