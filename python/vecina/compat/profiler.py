# SPDX-License-Identifier: MIT
"""``natten.profiler`` over vecina: NATTEN's options, problems and table, vecina's times.

``python -m vecina.compat.profiler -i 32 32 -w 7 7 --backprop`` takes the options of
``python -m natten.profiler``. Options that choose or tune NATTEN's kernels are taken and change
nothing; ``--optimize`` says so and profiles what vecina chooses. ``xformers``, ``cudnn`` and
``fav2`` are PyTorch's own attention and need a window that is the whole input. ``-c 0`` and
``-c false`` are not causal.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import NamedTuple

import torch

from vecina import torch as vt
from vecina.compat import _backends, _checks, _context, _types

DTYPE_MAP = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
NATTEN_BACKENDS = ["cutlass-fna", "blackwell-fna", "hopper-fna", "flex-fna"]
NATTEN_FMHA_BACKENDS = ["cutlass-fmha", "blackwell-fmha", "hopper-fmha", "flex-fmha"]
_SDPA = {"xformers": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "fav2": "FLASH_ATTENTION"}
SDPA_BACKENDS = list(_SDPA)
SCHEDULE_MAP = dict(zip(("non", "coop", "pp"), _types.KernelSchedule))


class Problem:
    """Sizes of a call, and its tensors."""

    def __init__(
        self, na_dim, batch_size, heads, dim, input_size, window_size, stride, dilation, dtype,
        is_causal, additional_kv_length=None, dim_value=None, heads_kv=None,
    ):  # fmt: skip
        for name, axes in (
            ("input_size", input_size), ("window_size", window_size), ("stride", stride),
            ("dilation", dilation),
        ):  # fmt: skip
            if len(axes) != na_dim:
                raise ValueError(f"{name} is {axes}; {na_dim} numbers are needed.")
        self.na_dim, self.batch_size, self.dtype = na_dim, batch_size, dtype
        self.heads, self.heads_kv = heads, heads_kv or heads
        self.dim, self.dim_value = dim, dim_value or dim
        self.input_size, self.window_size = tuple(input_size), tuple(window_size)
        self.stride, self.dilation = tuple(stride), tuple(dilation)
        self.is_causal = tuple(is_causal or (False,) * na_dim)
        self.additional_kv_length = additional_kv_length
        self.has_additional_kv = bool(additional_kv_length)

    @property
    def is_self_attn(self) -> bool:
        """True if every query sees every key."""
        return self.input_size == self.window_size and not any(self.is_causal)

    def _shape(self, heads: int, dim: int, heads_last: bool, flatten: bool) -> list[int]:
        tokens = [math.prod(self.input_size)] if flatten else list(self.input_size)
        rest = [*tokens, heads] if heads_last else [heads, *tokens]
        return [self.batch_size, *rest, dim]

    def get_q_tensor_shape(self, heads_last: bool, flatten: bool = False) -> list[int]:
        return self._shape(self.heads, self.dim, heads_last, flatten)

    def get_k_tensor_shape(self, heads_last: bool, flatten: bool = False) -> list[int]:
        return self._shape(self.heads_kv, self.dim, heads_last, flatten)

    def get_v_tensor_shape(self, heads_last: bool, flatten: bool = False) -> list[int]:
        return self._shape(self.heads_kv, self.dim_value, heads_last, flatten)

    def get_o_tensor_shape(self, heads_last: bool, flatten: bool = False) -> list[int]:
        return self._shape(self.heads, self.dim_value, heads_last, flatten)

    def _more(self, dim: int, heads_last: bool) -> list[int]:
        tokens, heads = self.additional_kv_length, self.heads_kv
        return [self.batch_size, *((tokens, heads) if heads_last else (heads, tokens)), dim]

    def get_add_k_tensor_shape(self, heads_last: bool) -> list[int]:
        return self._more(self.dim, heads_last)

    def get_add_v_tensor_shape(self, heads_last: bool) -> list[int]:
        return self._more(self.dim_value, heads_last)

    def _tensors(self, shapes, device, requires_grad: bool):
        made = (torch.randn(shape, device=device).to(self.dtype) for shape in shapes)
        return tuple(tensor.requires_grad_(requires_grad) for tensor in made)

    def make_qkv_tensors(self, device, requires_grad: bool, heads_last: bool, flatten=False):
        shapes = (self.get_q_tensor_shape, self.get_k_tensor_shape, self.get_v_tensor_shape)
        return self._tensors([f(heads_last, flatten) for f in shapes], device, requires_grad)

    def make_qkvo_tensors(self, device, requires_grad: bool, heads_last: bool, flatten=False):
        qkv = self.make_qkv_tensors(device, requires_grad, heads_last, flatten)
        output = self.get_o_tensor_shape(heads_last, flatten)
        return (*qkv, *self._tensors([output], device, requires_grad))

    def make_additional_kv_tensors(self, device, requires_grad: bool, heads_last: bool):
        shapes = [self._more(self.dim, heads_last), self._more(self.dim_value, heads_last)]
        return self._tensors(shapes, device, requires_grad)

    def __repr__(self) -> str:
        names = (
            "batch_size heads heads_kv input_size window_size stride dilation is_causal "
            "additional_kv_length dtype"
        ).split()
        return f"Problem({', '.join(f'{name}={getattr(self, name)}' for name in names)})"


def generate_problem(
    batch_size, heads, input_size, dim, window_size, stride, dilation, dtype, is_causal,
    additional_kv_length=None, dim_value=None, heads_kv=None,
) -> Problem:  # fmt: skip
    return Problem(
        len(input_size), batch_size, heads, dim, input_size, window_size, stride, dilation, dtype,
        is_causal, additional_kv_length, dim_value, heads_kv,
    )  # fmt: skip


class Result(NamedTuple):
    """One line of the table."""

    framework: str
    kernel_type: str
    tag: str
    op_name: str
    num_calls: int
    time_us: float

    @property
    def op_name_formatted(self) -> str:
        return self.op_name

    @property
    def time_str(self) -> str:
        for size, unit in ((1e6, "s"), (1e3, "ms")):
            if self.time_us >= size:
                return f"{self.time_us / size:.3f} {unit}"
        return f"{self.time_us:.3f} us"

    def __add__(self, other: Result) -> Result:
        return self._replace(
            op_name="Total", num_calls=self.num_calls + other.num_calls,
            time_us=self.time_us + other.time_us,
        )  # fmt: skip

    def __radd__(self, other) -> Result:  # sum() begins with 0
        return self if other == 0 else other + self


def _device() -> str:
    return "cuda" if _backends.HAS_LIBNATTEN and torch.cuda.is_available() else "cpu"


def _timed_us(call, device: str):
    """(microseconds by the device's clock, what call returned)."""
    if device == "cpu":
        start = time.perf_counter_ns()
        result = call()
        return (time.perf_counter_ns() - start) / 1e3, result
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3, result


def _measure(attend, tensors, grad_output, warmup_steps: int, backprop: bool, device: str):
    """Microseconds of the forward pass and, if asked for, of the backward pass."""
    leaves = [tensor.requires_grad_(backprop) for tensor in tensors]
    with torch.set_grad_enabled(backprop):
        for step in range(warmup_steps + 1):
            times = []
            forward_us, output = _timed_us(lambda: attend(*leaves), device)
            times.append(forward_us)
            if backprop:
                times.append(
                    _timed_us(lambda: torch.autograd.grad(output, leaves, grad_output), device)[0]
                )
    return times


def _results(framework: str, kind: str, tag: str, times) -> list[Result]:
    names = ("Forward", "Backward")
    return [Result(framework, kind, tag, n, 1, t) for n, t in zip(names, times)]


def profile_na_with_torch(
    problem: Problem, warmup_steps: int = 10, backend=None, fmha_backend=None,
    disable_backward: bool = False, **tuning,
) -> list[Result]:  # fmt: skip
    """Times of vecina's call. The backends and what tunes them are taken and change nothing."""
    _backends.check(backend, _backends.FNA)
    _backends.check(fmha_backend, _backends.FMHA)
    if problem.dtype.itemsize == 1:
        raise NotImplementedError("8-bit floats: not yet; fp32, bf16 and fp16 are there.")
    window = _checks.check_all_args(
        problem.na_dim, problem.window_size, problem.stride, problem.dilation, problem.is_causal
    )
    device = _device()
    *tensors, grad_output = problem.make_qkvo_tensors(device, False, heads_last=True)
    if problem.has_additional_kv:
        tensors += problem.make_additional_kv_tensors(device, False, heads_last=True)

    def attend(query, key, value, keys=None, values=None):
        return vt.neighborhood_attention(
            query, key, value, *window, additional_keys=keys, additional_values=values
        )

    times = _measure(attend, tensors, grad_output, warmup_steps, not disable_backward, device)
    kind = "Attention" if problem.is_self_attn else "Neighborhood attention"
    return _results("vecina", kind, device, times)


def measure_natten_runtime(problem: Problem, warmup_steps: int, *args, **keywords) -> float:
    """Milliseconds of a call, forward and unless disable_backward is True backward."""
    results = profile_na_with_torch(problem, warmup_steps, *args, **keywords)
    return sum(result.time_us for result in results) / 1e3


def profile_fmha_with_torch(
    problem: Problem, warmup_steps: int = 10, backend: str = "cudnn",
    disable_backward: bool = False, debug_report_prof_result: bool = False,
) -> list[Result]:  # fmt: skip
    """Times of PyTorch's own attention; NotImplementedError where it has no such kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if backend not in _SDPA:
        raise NotImplementedError(f"backend {backend!r} is none of {', '.join(_SDPA)}.")
    if not problem.is_self_attn or problem.has_additional_kv:
        raise NotImplementedError(
            f"backend {backend!r} is PyTorch's attention: without additional tokens, and with a "
            "window that is the whole input and not causal."
        )
    device = _device()
    *tensors, grad_output = problem.make_qkvo_tensors(device, False, False, flatten=True)

    def attend(query, key, value):
        with sdpa_kernel(getattr(SDPBackend, _SDPA[backend])):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, enable_gqa=problem.heads != problem.heads_kv
            )

    try:
        times = _measure(attend, tensors, grad_output, warmup_steps, not disable_backward, device)
    except RuntimeError as error:
        raise NotImplementedError(f"PyTorch's {backend} cannot run this: {error}") from error
    return _results("PyTorch", "Attention", backend, times)


def do_profile(
    problem: Problem, backend=None, fmha_backend=None, warmup_steps: int = 5,
    backprop: bool = False, **tuning,
) -> list[Result]:  # fmt: skip
    if backend in SDPA_BACKENDS:
        return profile_fmha_with_torch(problem, warmup_steps, backend, not backprop)
    return profile_na_with_torch(problem, warmup_steps, backend, fmha_backend, not backprop)


def dry_run(
    problem: Problem, backend=None, fmha_backend=None, backprop: bool = False,
    torch_compile: bool = False, max_configs: int = 10,
) -> None:  # fmt: skip
    """Prints the tile shapes that may be given; vecina chooses its own whichever is."""
    if backend in SDPA_BACKENDS:
        raise ValueError(f"a dry run is for {', '.join(NATTEN_BACKENDS)}, not for {backend}.")
    kind = "fmha" if problem.is_self_attn else "fna"
    given = fmha_backend if problem.is_self_attn else backend
    tensors = problem.make_qkv_tensors("meta", False, True, flatten=problem.is_self_attn)
    listed = _backends.FMHA if problem.is_self_attn else _backends.FNA
    for name in listed if given is None else [given]:
        family = name.rpartition("-")[0]
        family = family if family in ("cutlass", "flex") else f"cutlass_{family}"
        configs = getattr(_backends, f"get_configs_for_{family}_{kind}")(*tensors)
        if configs:
            shown = configs[: max_configs or None]
            print_table(f"{name}", ["Q tile", "KV tile"], [list(map(str, row)) for row in shown])
    print("vecina chooses its tiles itself: `vecina plan` shows them.")


def optimize(problem: Problem, backend=None, fmha_backend=None, **tuning) -> None:
    """Prints that nothing is to be searched: no tuning argument changes what vecina runs."""
    if backend in SDPA_BACKENDS:
        raise ValueError(f"optimize is for {', '.join(NATTEN_BACKENDS)}, not for {backend}.")
    _backends.check(backend, _backends.FNA)
    _backends.check(fmha_backend, _backends.FMHA)
    print(
        f"Nothing to search: vecina has one backend for tensors on {_device()} and cuts its tiles "
        "itself. Leave backends and tile shapes out of your calls; `vecina plan` shows what runs."
    )


def print_table(title: str, headers, values, has_footer: bool = False) -> None:
    """Columns as wide as they need to be, with a line before the footer."""
    rows = [list(headers), *([str(value) for value in row] for row in values)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headers))]
    line = "-+-".join("-" * width for width in widths)
    texts = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    texts.insert(1, line)
    if has_footer and len(values) > 1:
        texts.insert(-1, line)
    print("\n".join([title.center(len(line)).rstrip(), *(text.rstrip() for text in texts)]))


def check_input_size(input_size) -> tuple[int, ...]:
    if input_size is None or len(input_size) not in (1, 2, 3):
        raise ValueError(f"the input size is {input_size}; one, two or three numbers are needed.")
    return tuple(input_size)


def _per_axis(name: str, given, input_size, default) -> tuple:
    if given is None:
        return tuple(default)
    if len(given) != len(input_size):
        raise ValueError(f"{name} is {given}; as many values as of {input_size} are needed.")
    return tuple(given)


def check_window_size(input_size, window_size=None) -> tuple[int, ...]:
    window = _per_axis("the window size", window_size, input_size, input_size)
    if any(w > n for w, n in zip(window, input_size)):
        raise ValueError(f"the window size {window} exceeds the input size {input_size}.")
    return window


def check_dilation(input_size, window_size, dilation=None) -> tuple[int, ...]:
    steps = _per_axis("dilation", dilation, input_size, [1] * len(input_size))
    if any(d * w > n for d, w, n in zip(steps, window_size, input_size)):
        raise ValueError(
            f"dilation {steps} times the window size {window_size} exceeds the input size "
            f"{input_size}."
        )
    return steps


def check_stride(input_size, window_size, dilation, stride=None) -> tuple[int, ...]:
    strides = _per_axis("stride", stride, input_size, [1] * len(input_size))
    if any(s > w for s, w in zip(strides, window_size)):
        raise ValueError(f"stride {strides} exceeds the window size {window_size}.")
    return strides


def check_causal(input_size, causal=None) -> tuple[bool, ...]:
    return _per_axis("causal", causal, input_size, [False] * len(input_size))


def _flag(text: str) -> bool:
    return text.lower() not in ("", "0", "false", "no")


def get_args(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "natten.profiler", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("-b", "--batch-size", type=int, default=1)
    add("-n", "--heads", type=int, default=1, help="heads of the queries")
    add("--heads-kv", type=int, help="heads of keys and values (as of the queries)")
    add("-d", "--dim", type=int, default=64, help="head dim")
    add("--dim-value", type=int, help="head dim of the values (as --dim)")
    add("-i", "--input-size", type=int, nargs="+", help="tokens along each axis")
    add("-w", "--window-size", type=int, nargs="*", help="of the window (the whole input)")
    add("-s", "--stride", type=int, nargs="*")
    add("--dilation", type=int, nargs="*")
    add("-c", "--causal", type=_flag, nargs="*", help="for each axis")
    add("--dtype", default="fp16", choices=DTYPE_MAP)
    add("--backprop", action="store_true", help="the backward pass too")
    add("--add-kv", type=int, default=0, help="additional tokens")
    add("--backend", choices=NATTEN_BACKENDS + SDPA_BACKENDS)
    add("--fmha-backend", choices=NATTEN_FMHA_BACKENDS)
    for name in ("q", "kv", "backward-q", "backward-kv"):
        add(f"--{name}-tile", type=int, nargs="*")
    add("--schedule", choices=SCHEDULE_MAP)
    for name in ("persistent", "compile", "dry-run", "optimize"):
        add(f"--{name}", action="store_true")
    add("--warmup-steps", type=int, default=10)
    add("--max-configs", type=int, default=10, help="of --dry-run; 0: all")
    add("--optimize-warmup-steps", type=int, default=5)
    args = parser.parse_args(arguments)
    args.dim_value = args.dim_value or args.dim
    args.input_size = check_input_size(args.input_size)
    args.window_size = check_window_size(args.input_size, args.window_size)
    args.dilation = check_dilation(args.input_size, args.window_size, args.dilation)
    args.stride = check_stride(args.input_size, args.window_size, args.dilation, args.stride)
    args.causal = check_causal(args.input_size, args.causal)
    return args


def profile(
    batch_size, heads, input_size, dim, dim_value, window_size, stride, dilation, dtype, causal,
    warmup_steps, backend, fmha_backend, backprop, add_kv, q_tile, kv_tile, backward_q_tile,
    backward_kv_tile, persistent, schedule, compile, dry_run, max_configs, optimize,
    optimize_warmup_steps, heads_kv=None,
) -> None:  # fmt: skip
    """Prints the table of one problem, with dry_run what may be chosen instead."""
    if dry_run and optimize:
        raise ValueError("dry_run and optimize do not go together.")
    for name, pair in (
        ("q_tile and kv_tile", (q_tile, kv_tile)),
        ("backward_q_tile and backward_kv_tile", (backward_q_tile, backward_kv_tile)),
    ):
        if (pair[0] is None) != (pair[1] is None):
            raise ValueError(f"{name} belong together; they are {pair[0]} and {pair[1]}.")
    if dtype not in DTYPE_MAP:
        raise NotImplementedError(f"dtype {dtype!r} is none of {', '.join(DTYPE_MAP)}.")
    _context.use_kv_parallelism_in_fused_na(True)
    _context.set_memory_usage_preference("unrestricted")
    problem = generate_problem(
        batch_size, heads, input_size, dim, window_size, stride, dilation, DTYPE_MAP[dtype],
        causal, add_kv, dim_value, heads_kv,
    )  # fmt: skip
    if dry_run:
        globals()["dry_run"](problem, backend, fmha_backend, backprop, compile, max_configs)
        return
    if optimize:
        globals()["optimize"](problem, backend, fmha_backend)
    results = do_profile(problem, backend, fmha_backend, warmup_steps, backprop)
    rows = [
        [r.framework, r.kernel_type, r.tag, r.op_name_formatted, str(r.num_calls), r.time_str]
        for r in results
    ]
    rows.append(["", "", "", "Total", "", sum(results).time_str])
    headers = ["Framework", "Kernel category", "Arch", "Operation", "# calls", "Runtime"]
    print_table("Profiler results", headers, rows, has_footer=True)


if __name__ == "__main__":
    profile(**vars(get_args()))
