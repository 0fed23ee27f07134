# SPDX-License-Identifier: MIT
"""What each release of NATTEN, natten-mps and natten-mlx called what, with which arguments.

One row for each function and release; ``_build`` makes the functions from it, ``_operations``,
``_port_operations`` and ``_modules`` carry them out. Releases: natten (0.21), v020, v017 (0.17.x),
v015, v014 (those of NATTEN), natten_mps, natten_mlx, and mps_v014, mps_v017, mps_v020, mlx_v014,
mlx_v017, mlx_v020 (the ports' own ``compat``). A new release is rows here.
"""

from __future__ import annotations

from typing import NamedTuple


class Function(NamedTuple):
    releases: tuple[str, ...]
    name: str  # {rank} stands for each of ranks
    arguments: str  # as in a def
    run: str  # the function that carries it out, given the arguments by name
    ranks: tuple[int, ...] = (0,)  # 0: does not depend on one
    module: str = "functional"


class Module(NamedTuple):
    releases: tuple[str, ...]
    arguments: str  # of __init__, after self
    ranks: tuple[int, ...]
    base: str  # class of _modules
    renamed: dict[str, str]  # argument -> that of vecina.torch's modules; the rest is the same


ALL, PLANE = (1, 2, 3), (1, 2)
PORTS = ("natten_mps", "natten_mlx")
#: The ports' own compat, by what it stands for.
OLD_14, OLD_17, OLD_20 = (("mps_" + v, "mlx_" + v) for v in ("v014", "v017", "v020"))

_QKV = "query, key, value"
_TILES = (
    "backend=None, q_tile_{0}=None, kv_tile_{0}=None, backward_q_tile_{0}=None, "
    "backward_kv_tile_{0}=None, backward_kv_splits=None, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False"
)
_NEW = (
    f"{_QKV}, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
    f"additional_keys=None, additional_values=None, attention_kwargs=None, {_TILES.format('shape')}"
)
# NATTEN's kernels by name, with what else each takes.
_FNA = (
    f"{_QKV}, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, q_tile_shape=None, "
    "kv_tile_shape=None, {}return_lse=False"
)
_FMHA = f"{_QKV}, {{}}scale=None, q_tile_size=None, kv_tile_size=None, {{}}return_lse=False{{}}"
_CUMULATIVE = (
    ", cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=0, max_seqlen_KV=0"
)
_BACKWARD_TILES = "backward_q_tile_{0}=None, backward_kv_tile_{0}=None, "
_SPLITS = "backward_kv_splits=None, backward_use_pt_reduction=False, "
_KERNELS = {
    "cutlass": (_BACKWARD_TILES + _SPLITS,) * 2,
    "cutlass_hopper": (
        _BACKWARD_TILES + "kernel_schedule=None, ", "kernel_schedule=None, " + _BACKWARD_TILES
    ),
    "cutlass_blackwell": (
        _BACKWARD_TILES + "run_persistent_kernel=False, ",
        "run_persistent_kernel=False, " + _BACKWARD_TILES,
    ),
    "flex": ("torch_compile=False, ",) * 2,
}  # fmt: skip
_REFERENCE = (
    f"{_QKV}, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
    "additional_keys=None, additional_values=None, return_lse=False"
)
_SEQLENS = (
    "seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, "
    "max_seqlen_Q=None, max_seqlen_KV=None"
)
_OLD_QK = "query, key, {}kernel_size, dilation{}"
_3D = "kernel_size_d, kernel_size, dilation_d, dilation"
_PORT_QK = "query, key, kernel_size, dilation=1, *, stride=1, is_causal=False, scale=None"
_PORT_NA = (
    f"{_QKV}, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, return_lse=False, "
    "additional_keys=None, additional_values=None"
)



def _kernels():
    """Rows of natten.backends: each kernel for neighborhoods and for attention."""
    for kernel, (fna, fmha) in _KERNELS.items():
        fna, fmha = fna.format("shape"), fmha.format("size")
        of_rank = "na{rank}d_" + kernel + ("" if kernel == "flex" else "_fna")
        for name, ranks in ((f"{kernel}_fna_generic", (0,)), (of_rank, ALL)):
            yield Function(("natten", "v020"), name, _FNA.format(fna), "natten_na", ranks,
                           "backends")  # fmt: skip
        for release, more in (("natten", ("is_causal=False, ", fmha, _CUMULATIVE)),
                              ("v020", ("", fmha, ""))):  # fmt: skip
            yield Function((release,), f"{kernel}_fmha", _FMHA.format(*more), "natten_attention",
                           module="backends")  # fmt: skip


def _mlx_extras():
    """Heads first, in both of the modules where natten-mlx has them."""
    for module in ("functional", "functional_metal"):
        yield Function(("natten_mlx",), "natten{rank}dqkrpb",
                       "query, key, rpb, kernel_size, dilation", "mlx_qk_rpb", PLANE,
                       f"extras.allin1.{module}")  # fmt: skip
        yield Function(("natten_mlx",), "natten{rank}dav",
                       "attention_probs, value, kernel_size, dilation", "mlx_av", PLANE,
                       f"extras.allin1.{module}")  # fmt: skip
    yield Function(("natten_mlx",), "natten{rank}dqkrpb_backward",
                   "d_attn, query, key, rpb, kernel_size, dilation", "mlx_qk_rpb_backward", PLANE,
                   "extras.allin1.functional_metal")  # fmt: skip
    yield Function(("natten_mlx",), "natten{rank}dav_backward",
                   "d_out, attention_probs, value, kernel_size, dilation", "mlx_av_backward", PLANE,
                   "extras.allin1.functional_metal")  # fmt: skip
    yield Function(("natten_mlx",), "natten{rank}d_qkv_fused",
                   "query, key, value, rpb, kernel_size, dilation", "mlx_qkv", (2,),
                   "extras.allin1.functional_metal")  # fmt: skip


FUNCTIONS = (
    *_kernels(),
    # NATTEN 0.20 and later
    Function(("natten",), "na{rank}d", f"{_NEW}, return_lse=False", "natten_na", ALL),
    Function(
        ("natten",), "neighborhood_attention_generic", f"{_NEW}, return_lse=False", "natten_na"
    ),
    Function(("v020",), "na{rank}d", f"{_NEW}, try_fuse_additional_kv=False", "natten_na", ALL),
    Function(
        ("v020",), "neighborhood_attention_generic", f"{_NEW}, try_fuse_additional_kv=False",
        "natten_na",
    ),
    Function(
        ("natten",), "attention",
        f"{_QKV}, is_causal=False, scale=None, {_SEQLENS}, {_TILES.format('size')}, "
        "return_lse=False",
        "natten_attention",
    ),
    Function(
        ("v020",), "attention",
        f"{_QKV}, scale=None, {_TILES.format('size')}, return_lse=False", "natten_attention",
    ),
    Function(
        ("natten",), "merge_attentions",
        "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True", "natten_merge",
    ),
    Function(("v020",), "merge_attentions", "outputs, lse_tensors, torch_compile=True",
             "natten_merge"),
    Function(("natten", "v020"), "reference_fna_generic", _REFERENCE, "natten_reference",
             module="backends.reference"),
    Function(("natten", "v020"), "na{rank}d_reference", _REFERENCE, "natten_reference", ALL,
             "backends.reference"),
    Function(
        ("natten",), "generate_varlen_parameters",
        f"{_QKV}, seqlens_Q=None, seqlens_KV=None", "varlen_parameters", module="utils.varlen",
    ),
    # NATTEN 0.17
    Function(
        ("v017",), "na{rank}d",
        f"{_QKV}, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, "
        "additional_keys=None, additional_values=None, xformers_kwargs=None",
        "natten17_na", ALL,
    ),
    Function(
        ("v017",), "na{rank}d_qk",
        "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None",
        "natten17_qk", ALL,
    ),
    Function(
        ("v017",), "na{rank}d_av",
        "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False",
        "natten17_av", ALL,
    ),
    Function(
        ("v017",), "na{rank}d",
        f"{_QKV}, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, "
        "additional_keys=None, additional_values=None, xformers_kwargs=None",
        "natten17_na", ALL, "experimental",
    ),
    Function(
        ("v017",), "flex_na{rank}d",
        f"{_QKV}, kernel_size, dilation=1, is_causal=False, additional_keys=None, "
        "additional_values=None, xformers_kwargs=None",
        "natten17_na", ALL, "flex",
    ),
    Function(("v017",), "can_run_flex_attention", "input_shape", "any_shape", module="flex"),
    Function(("v017",), "get_na_flex_mask",
             "na_dim, input_size, kernel_size, dilation, is_causal", "flex_mask", module="flex"),
    # NATTEN 0.15
    Function(("v015",), "na{rank}d_qk", _OLD_QK.format("", ", additional_keys=None"),
             "natten15_qk", PLANE),
    Function(("v015",), "na{rank}d_qk_with_bias",
             _OLD_QK.format("bias, ", ", additional_keys=None"), "natten15_qk", PLANE),
    Function(("v015",), "na{rank}d_av", "attn, value, kernel_size, dilation, "
             "additional_values=None", "natten15_av", PLANE),
    Function(("v015",), "na{rank}d_qk", f"query, key, {_3D}, additional_keys=None",
             "natten15_qk", (3,)),
    Function(("v015",), "na{rank}d_qk_with_bias", f"query, key, bias, {_3D}, additional_keys=None",
             "natten15_qk", (3,)),
    Function(("v015",), "na{rank}d_av", f"attn, value, {_3D}, additional_values=None",
             "natten15_av", (3,)),
    # NATTEN 0.14, kept until 0.17.0
    Function(("v014", "v015", "v017"), "natten{rank}dqkrpb", _OLD_QK.format("rpb, ", ""),
             "natten15_qk", PLANE),
    Function(("v014", "v015", "v017"), "natten{rank}dqk", _OLD_QK.format("", ""),
             "natten15_qk", PLANE),
    Function(("v014", "v015", "v017"), "natten{rank}dav", "attn, value, kernel_size, dilation",
             "natten15_av", PLANE),
    Function(("v015", "v017"), "natten{rank}dqkrpb", f"query, key, rpb, {_3D}", "natten15_qk",
             (3,)),
    Function(("v015", "v017"), "natten{rank}dqk", f"query, key, {_3D}", "natten15_qk", (3,)),
    Function(("v015", "v017"), "natten{rank}dav", f"attn, value, {_3D}", "natten15_av", (3,)),
    # The ports
    Function(PORTS, "na{rank}d", _PORT_NA, "port_na", ALL),
    Function(("natten_mps",), "na{rank}d_qk", _PORT_QK, "mps_qk", ALL),
    Function(("natten_mlx",), "na{rank}d_qk", _PORT_QK, "port_qk", ALL),
    Function(PORTS, "na{rank}d_av",
             "attn, value, kernel_size, dilation=1, *, stride=1, is_causal=False", "port_av", ALL),
    Function(PORTS, "na{rank}d_varlen",
             f"{_QKV}, seq_lens, kernel_size, dilation=1, scale=None", "port_varlen", (1,)),
    Function(PORTS, "na{rank}d_varlen",
             f"{_QKV}, spatial_sizes, kernel_size, dilation=1, scale=None", "port_varlen", (2, 3)),
    Function(("natten_mps",), "merge_attentions", "outputs, lse_tensors, use_autograd_fix=True",
             "port_merge", module="merge"),
    Function(("natten_mlx",), "merge_attentions", "outputs, lse_tensors", "port_merge",
             module="merge"),
    Function(PORTS, "na{rank}d_qk_rpb", "query, key, rpb, kernel_size, dilation=1, *, scale=None",
             "port_qk_rpb", PLANE, "extras.allin1"),
    Function(PORTS, "na{rank}d_av_fused", "attn, value, kernel_size, dilation=1", "port_av_fused",
             PLANE, "extras.allin1"),
    Function(("natten_mps",), "natten{rank}dqkrpb", "query, key, rpb, kernel_size, dilation",
             "port_qk_rpb", PLANE, "extras.allin1.functional"),
    Function(("natten_mps",), "natten{rank}dav", "attention_probs, value, kernel_size, dilation",
             "port_av_fused", PLANE, "extras.allin1.functional"),
    *_mlx_extras(),
    Function(("natten_mps",), "get_support_matrix", "", "mps_support_matrix",
             module="support_matrix"),
    Function(("natten_mlx",), "get_support_matrix", "", "mlx_support_matrix",
             module="support_matrix"),
    Function(("natten_mps",), "get_window_start", "index, length, kernel_size, dilation",
             "window_start", module="utils.window"),
    Function(("natten_mps",), "get_window_end", "index, length, kernel_size, dilation",
             "window_last", module="utils.window"),
    Function(("natten_mps",), "get_pb_start", "index, length, kernel_size, dilation",
             "bias_start", module="utils.window"),
    Function(("natten_mps",), "get_window_start_vectorized",
             "indices, length, kernel_size, dilation", "window_start_vectorized",
             module="utils.window"),
    Function(("natten_mps",), "get_pb_start_vectorized",
             "indices, length, kernel_size, dilation", "bias_start_vectorized",
             module="utils.window"),
    Function(("natten_mlx",), "get_window_start",
             "index, length, kernel_size, neighborhood_size, dilation", "window_start",
             module="utils.window"),
    Function(("natten_mlx",), "get_window_end", "start, length, kernel_size, dilation",
             "window_end", module="utils.window"),
    Function(("natten_mlx",), "get_pb_start",
             "index, length, kernel_size, neighborhood_size, dilation", "bias_start",
             module="utils.window"),
    Function(("natten_mlx",), "compute_window_start_end",
             "query_positions, length, kernel_size, dilation", "window_starts_and_ends",
             module="utils.window"),
    Function(("natten_mlx",), "compute_pb_start",
             "query_positions, length, kernel_size, dilation", "bias_starts",
             module="utils.window"),
    # The ports' compat
    Function((*OLD_14, *OLD_17), "natten{rank}dqkrpb", _OLD_QK.format("rpb, ", ""),
             "heads_first_qk", PLANE),
    Function((*OLD_14, *OLD_17), "natten{rank}dav", "attn, value, kernel_size, dilation",
             "heads_first_av", PLANE),
    Function(OLD_17, "na{rank}d",
             f"{_QKV}, kernel_size, dilation=1, is_causal=False, scale=None", "port_na", ALL),
    Function(OLD_20, "na{rank}d", _PORT_NA, "port_na", ALL),
    Function(("mps_v017", "mps_v020"), "na{rank}d_qk", _PORT_QK, "mps_qk", ALL),
    Function(("mlx_v017", "mlx_v020"), "na{rank}d_qk", _PORT_QK, "port_qk", ALL),
    Function((*OLD_17, *OLD_20), "na{rank}d_av",
             "attn, value, kernel_size, dilation=1, *, stride=1, is_causal=False", "port_av", ALL),
)  # fmt: skip

_DROPS = "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
_MODERN = "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, "
_DIM = {"dim": "embed_dim"}
_STEPS = {"stride": "output_stride"}

MODULES = (
    Module(("natten", "v020"), f"{_MODERN}qkv_bias=True, qk_scale=None, proj_drop=0.0", ALL,
           "Natten", {}),
    Module(
        ("v017",),
        "dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, "
        f"{_DROPS}, use_experimental_ops=False",
        ALL, "Natten17", _DIM,
    ),
    Module(("v014", "v015"), f"dim, num_heads, kernel_size, dilation=1, bias=True, {_DROPS}",
           PLANE, "Natten14", {**_DIM, "bias": "rel_pos_bias"}),
    Module(
        ("v015",),
        "dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, "
        f"{_DROPS}",
        (3,), "Natten14", {**_DIM, "bias": "rel_pos_bias"},
    ),
    Module((*PORTS, *OLD_20), f"{_MODERN}num_kv_heads=None, {_DROPS}", ALL, "Port", _STEPS),
    Module((*OLD_14, *OLD_17), f"dim, kernel_size, dilation=1, num_heads=1, {_DROPS}", PLANE,
           "Port", _DIM),
    Module(("mps_v017",), f"{_MODERN}num_kv_heads=None, {_DROPS}", (3,), "Port", _STEPS),
    Module(("mlx_v017",),
           f"dim, kernel_size, dilation=1, is_causal=False, num_heads=1, {_DROPS}", (3,), "Port",
           _DIM),
)  # fmt: skip

# Where a release keeps its modules, besides its top.
MODULE_PLACES = {
    "natten": "modules", "v020": "modules", "v017": "na{rank}d", "v015": "natten{rank}d",
    "v014": "natten{rank}d", "natten_mps": "nn", "natten_mlx": "nn",
}  # fmt: skip

# The context's functions (and constants) of a release, in its module and where it shows them again.
_MEMORY = (
    "set_memory_usage_preference get_memory_usage_preference is_memory_usage_default "
    "is_memory_usage_strict is_memory_usage_unrestricted use_deterministic_algorithms "
    "are_deterministic_algorithms_enabled use_kv_parallelism_in_fused_na "
    "is_kv_parallelism_in_fused_na_enabled"
).split()
_HAS = "has_cuda has_half has_bfloat has_gemm has_tf32_gemm has_fp32_gemm has_fp64_gemm".split()
_GEMM = (
    "enable_tf32 disable_tf32 enable_gemm_na disable_gemm_na enable_tiled_na disable_tiled_na"
).split()
_FLEX = (
    "allow_flex_compile allow_flex_compile_backprop disable_flex_compile "
    "disable_flex_compile_backprop is_flex_compile_allowed is_flex_compile_backprop_allowed"
).split()
_SWITCHES = (
    "has_fna has_fused_na use_fna is_fna_enabled use_fused_na is_fused_na_enabled use_autotuner "
    "disable_autotuner is_autotuner_enabled is_autotuner_enabled_for_forward "
    "is_autotuner_enabled_for_backward is_autotuner_thorough_for_forward "
    "is_autotuner_thorough_for_backward use_tf32_in_gemm_na is_tf32_in_gemm_na_enabled "
    "use_tiled_na is_tiled_na_enabled use_gemm_na is_gemm_na_enabled use_flex_attention "
    "force_flex_attention"
).split()
_FLOPS = ["add_natten_handle", "get_flops"]
_CONFIGS = [
    f"get_{way}configs_for_{kind}"
    for kind in ("cutlass_fna", "cutlass_fmha", "cutlass_hopper_fna", "cutlass_hopper_fmha",
                 "cutlass_blackwell_fna", "cutlass_blackwell_fmha", "flex_fna", "flex_fmha")
    for way in ("", "bwd_") if not (way and kind.startswith("flex"))
]  # fmt: skip
_CHOICES = (
    "choose_backend choose_fmha_backend get_compatible_backends get_compatible_fmha_backends "
    "can_run_cutlass_fna can_run_cutlass_fmha can_run_cutlass_hopper_fna "
    "can_run_cutlass_hopper_fmha can_run_cutlass_blackwell_fna can_run_cutlass_blackwell_fmha "
    "can_run_flex_attention"
).split()
_ALL_CONFIGS = [
    f"get_all_{kind}{way}_configs" for kind in ("", "fmha_") for way in ("forward", "backward")
]
_PROFILES = (
    "generate_problem measure_natten_runtime print_table profile_fmha_with_torch "
    "profile_na_with_torch"
).split()

#: In place of names: the module itself, for who reloads it or looks for what is not public.
ITSELF = ...

#: release -> {submodule: (real module of this package, names; None: all public ones; or ITSELF)}
SUPPORT = {
    "natten": {
        "context": ("_context", [*_MEMORY, *_FLEX, "NattenContext", "MemoryUsagePreference"]),
        "backends": ("_backends", [*_CONFIGS, *_CHOICES]),
        "token_permute": (
            "_token_permute",
            ["token_permute_operation", "token_unpermute_operation", "maybe_pad", "maybe_unpad",
             "token_permute", "token_unpermute"],
        ),
        "types": ("_types", None),
        "utils.checks": ("_checks", None),
        "utils.testing": ("_testing", None),
        "_environment": (
            "_internals",
            ["HAS_LIBNATTEN", "_NUM_RAND_SWEEP_TESTS", "_RUN_ADDITIONAL_KV_TESTS",
             "_RUN_FLEX_TESTS"],
        ),
        "_libnatten": ("_internals", ["compute_delta"]),
        "utils.dtype": ("_internals", ["is_fp8"]),
        "utils.log": ("_log", ITSELF),
        **{f"backends.configs.{kernel}": ("_backends", _ALL_CONFIGS)
           for kernel in ("cutlass", "cutlass_hopper", "cutlass_blackwell")},
        "backends.configs.flex": ("_backends", ["FLEX_FORWARD_TILE_SHAPES"]),
        "": ("_backends", _CONFIGS),
        "profiler": ("profiler", ITSELF),
        "profiling_utils": ("profiler", _PROFILES),
        "profiling_utils.problem": ("profiler", ["Problem", "generate_problem"]),
        "profiling_utils.profiling": ("profiler", _PROFILES),
        "profiling_utils.formatting": ("profiler", ["Result"]),
        "profiling_utils.pretty_printer": ("profiler", ["print_table"]),
        "profiling_utils.dry_run": ("profiler", ["dry_run", "optimize"]),
    },
    "v017": {
        "context": (
            "_context",
            [*_MEMORY, *_HAS, *_GEMM, *_SWITCHES, "NattenContext", "AutotunerContext",
             "MemoryUsagePreference"],
        ),
        "types": ("_types", None),
        "flops": ("_flops", [*_FLOPS, "fna_flop_count", "na_av_flop_count", "na_qk_flop_count"]),
        "libnatten": ("_internals", ["compute_delta"]),
        "utils": ("_checks", ["check_all_args", "get_num_na_weights"]),
        "utils.checks": ("_checks", None),
        "utils.misc": ("_natten_utils", ["get_device_cc"]),
        "utils.log": ("_log", ITSELF),
        "utils.testing": ("_testing", None),
    },
    "v015": {
        "context": ("_context", [*_HAS, *_GEMM]),
        "flops": ("_flops", _FLOPS),
        "utils.testing": ("_testing", None),
    },
    "v014": {"flops": ("_flops", _FLOPS)},
    "natten_mps": {
        "_core": ("_mps_backends", ["get_backend", "set_backend"]),
        "_core.ops": ("_mps_backends", ITSELF),
        "_core.metal": ("_port_backends", ["is_available"]),
        "utils.params": ("_port_utils", None),
        "": ("_port_backends", ["has_mps", "has_metal"]),
    },
    "natten_mlx": {
        "_core": ("_mlx_backends", ["get_backend", "set_backend"]),
        "_core.ops": ("_mlx_backends", ITSELF),
        "_core.fast_metal": ("_port_backends", ["is_available"]),
        "_core.nanobind": ("_port_backends", ["is_available"]),
        "utils.params": ("_port_utils", None),
        "": ("_port_backends", ["has_metal", "has_nanobind"]),
    },
    "mps_v014": {"": ("_flops", ["add_natten_handle"])},
    "mps_v017": {
        "": ("_flops", ["add_natten_handle"]),
        "has": ("_port_backends", ["has_cuda", "has_mps", "has_gemm", "has_fna"]),
    },
    "mps_v020": {"has": ("_port_backends", ["has_cuda", "has_mps", "has_fna"])},
    "mlx_v014": {"": ("_port_backends", ["add_natten_handle"])},
    "mlx_v017": {
        "": ("_port_backends", ["add_natten_handle"]),
        "has": ("_port_backends", ["has_cuda", "has_mps", "has_mlx", "has_gemm", "has_fna"]),
    },
    "mlx_v020": {"has": ("_port_backends", ["has_cuda", "has_mps", "has_mlx", "has_fna"])},
}  # fmt: skip

#: release -> submodules whose public names its top shows again
SHOWN = {
    "natten": ("functional", "context", "_environment", "modules"),
    "v020": ("functional", "context", "_environment", "modules"),
    "v017": ("context",),
    "v015": ("context",),
    "v014": (),
    "natten_mps": ("functional", "merge", "_core", "support_matrix"),
    "natten_mlx": ("functional", "merge", "_core", "support_matrix"),
    **dict.fromkeys(OLD_14, ("functional",)),
    **dict.fromkeys((*OLD_17, *OLD_20), ("functional", "has")),
}

_UTILS = {
    "utils.tuples": ("_natten_utils", ["ceil_div_int", "ceil_div_tuple", "create_dim_from_int",
                                       "create_causal_arg_from_bool"]),
    "utils.device": ("_natten_utils", ["is_cuda", "is_rocm", "is_cpu", "get_device_cc"]),
}  # fmt: skip
SUPPORT["v020"] = {**SUPPORT["natten"], **_UTILS}
SUPPORT["natten"] |= {
    "utils.tuples": ("_natten_utils", [*_UTILS["utils.tuples"][1], "mul_tuple", "sub_tuple"]),
    "utils.device": _UTILS["utils.device"],
    "utils.environment": ("_natten_utils", ["parse_env_flag", "parse_env_int", "parse_env_str",
                                            "is_torch_compiling"]),
}  # fmt: skip

_RANKS = "na1d_{0}", "na2d_{0}", "na3d_{0}"


def _backend_modules():
    """A module for each of NATTEN's kernels, with what natten.backends has of it."""
    for path, kernel in (("", "cutlass"), ("hopper_", "cutlass_hopper"),
                         ("blackwell_", "cutlass_blackwell")):  # fmt: skip
        fna, fmha = f"{kernel}_fna", f"{kernel}_fmha"
        yield f"backends.{path}fna", ("backends", [
            f"{fna}_generic", f"can_run_{fna}", *(name.format(fna) for name in _RANKS)
        ])  # fmt: skip
        yield f"backends.{path}fmha", ("backends", [fmha, f"can_run_{fmha}"])
    yield "backends.flex", ("backends", [
        "flex_fna_generic", "flex_fmha", "can_run_flex_attention",
        *(name.format("flex") for name in _RANKS),
    ])  # fmt: skip
    yield "backends.configs.checks", ("backends", [n for n in _CHOICES if n.startswith("can_run")])


_TODAY = {
    "attn_merge": ("functional", ["merge_attentions"]),
    **dict(_backend_modules()),
    "token_permute.frontend": (
        "token_permute", ["token_permute_operation", "token_unpermute_operation"]
    ),
}  # fmt: skip
_OF_RANKS = tuple(f"NeighborhoodAttention{rank}D" for rank in ALL)
_PORT_PARTS = {
    **{f"nn.na{rank}d": ("nn", [_OF_RANKS[rank - 1]]) for rank in ALL},
    "utils": ("utils.params utils.window", None),
}

#: release -> submodule -> others, whose names it has too, and which (None: all public ones)
AGAIN = {
    "natten": _TODAY,
    "v020": {k: v for k, v in _TODAY.items() if k not in ("attn_merge", "token_permute.frontend")},
    "v017": {f"natten{rank}d": (f"na{rank}d", [_OF_RANKS[rank - 1]]) for rank in ALL},
    "natten_mps": _PORT_PARTS,
    "natten_mlx": {
        **_PORT_PARTS,
        "extras.allin1.reference_impl": (
            "utils.window", ["get_window_start", "get_window_end", "get_pb_start"]
        ),
    },
}  # fmt: skip

_TILES_OF = ("backward_128x128", "backward_128x64", "backward_64x64", "forward_32x128",
             "forward_64x128", "forward_64x64")  # fmt: skip
_CUTLASS = [f"backends.configs.cutlass.fna_{tiles}" for tiles in _TILES_OF]
#: release -> submodules of which everything belongs to its own kernels: they can be imported, and
#: what is asked of them is refused by name
INTERNALS = {
    "natten": [
        "_libnatten.stubs", "_libnatten.torch_wrappers", "backends.configs.cutlass.backward_knobs",
        *_CUTLASS, "profiling_utils.ops", "token_permute.cutlass_impl", "token_permute.torch_impl",
        "utils.tensor",
    ],
    "v020": ["attn_merge", *_CUTLASS, "profiling_utils.ops", "utils.tensor"],
    "v017": [
        "autotuner", "autotuner.configs",
        *(f"autotuner.configs.fna_{tiles}" for tiles in _TILES_OF), "autotuner.fna_backward",
        "autotuner.fna_forward", "autotuner.misc", "nested", "ops", "utils.tensor",
    ],
    "v015": ["nested", "ops", "utils.tensor", "utils.typing"],
    "natten_mps": [
        "_core._metal_shaders", "_core.inverse_maps", "_core.pure", "_torch_ops", "autograd",
        "autograd._factory", "autograd.na1d", "autograd.na2d", "autograd.na3d",
        "extras.allin1._metal_shaders", "extras.allin1.metal", "extras.allin1.reference_impl",
    ],
    "natten_mlx": [
        "_core._forward_tuning", "_core._metal_sources", "_core._nanobind_impl",
        "_core._nanobind_metal", "_core.pure", "autograd",
        "autograd.na1d", "autograd.na2d", "autograd.na3d", "autograd.split",
        "extras.allin1.kernels",
    ],
}  # fmt: skip

#: The version that a release without one calls itself, of those that have a submodule for it.
VERSIONS = {"natten": "0.21.6", "v020": "0.20.1", "natten_mps": "0.3.3", "natten_mlx": "0.3.3"}
