# SPDX-License-Identifier: MIT
"""``python -m vecina.bench --overhead``: where the time of a call from Python goes, line by line.

The problem has four numbers, so that next to nothing is computed. "Beyond" is what a call costs
more than what any operator would pay in the same run: allocating the output, and with autograd an
empty autograd.Function; "up to the kernel" also leaves out the kernel, which costs what each of
three more heads adds. All that the extension does is timed inside the call itself. What happens
around it, Python's own, is timed alone; "around the extension, more than alone" is what the lines
leave of the whole: the same after PyTorch's code has taken the caches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

_ROUNDS = 20
_RUN = "library and kernel, without the GIL"


def _best_us(calls: dict, count: int) -> dict[str, float]:
    """Microseconds of each call, the best of rounds in which they take turns."""
    for call in calls.values():
        for _ in range(200):
            call()
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            for _ in range(count):
                call()
            best[name] = min(best[name], (time.perf_counter_ns() - start) / count / 1000)
    nothing = best.pop("nothing")  # a call of Python that every figure has
    return {name: figure - nothing for name, figure in best.items()}


def _extension_us(call: Callable[[], object], count: int) -> dict[str, float]:
    """Microseconds of the parts of the extension in a call, of the round with the least sum."""
    import vecina.torch as vt
    from vecina import _vecina

    kept = vt._attend, vt._attend_plain
    vt._attend, vt._attend_plain = _vecina.timed_attend, _vecina.timed_attend_plain
    rounds = []
    try:
        for _ in range(_ROUNDS):
            _vecina.take_times()
            for _ in range(count):
                call()
            rounds.append(_vecina.take_times())
    finally:
        vt._attend, vt._attend_plain = kept
    best = min(rounds, key=lambda parts: sum(parts.values()))
    return {name: max(figure, 0.0) / count / 1000 for name, figure in best.items()}


def measure_overhead(calls: int) -> dict:
    """Microseconds by name; of na1d with and without autograd a dictionary of lines.

    Needs PyTorch.
    """
    import torch

    import vecina.torch as vt
    from vecina import _vecina

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return torch.empty_like(tensor)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Saving(torch.autograd.Function):  # the arguments and the saved tensors of ours, no more
        @staticmethod
        def forward(ctx, return_lse, parameters, *tensors):
            output = torch.empty_like(tensors[0])
            ctx.save_for_backward(*tensors, output, lse)
            ctx.parameters = parameters
            ctx.set_materialize_grads(False)
            return output

        @staticmethod
        def backward(ctx, gradient):
            return (None, None, gradient, None, None)

    def with_arguments(
        query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, *,
        additional_keys=None, additional_values=None, bias=None, lengths=None, head_scale=None,
        output_stride=1, return_lse=False, backend=None,
    ):  # fmt: skip
        return vt._is_compiling() or vt._is_decomposing

    attend_nothing = _vecina.attend_nothing

    def with_extension(
        query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, *,
        additional_keys=None, additional_values=None, bias=None, lengths=None, head_scale=None,
        output_stride=1, return_lse=False, backend=None,
    ):  # fmt: skip
        if not (vt._is_compiling() or vt._is_decomposing):
            try:
                found = attend_nothing(
                    query, key, value, additional_keys, additional_values, bias, lengths, None,
                    head_scale, 1, kernel_size, stride, dilation, is_causal, scale, output_stride,
                    None, None, backend, return_lse,
                )  # fmt: skip
            except RuntimeError:
                raise
            if found is not None and found is not False:
                return found

    query, key, value = torch.randn(3, 1, 4, 1, 1).unbind()
    leaf, lse = query.clone().requires_grad_(), torch.zeros(1, 4, 1)
    nothing, parameters = (None,) * 6, (1, 1, 1, 1, False, None, 1, None, None, None)
    ours, op = vt.na1d, torch.ops.vecina.forward
    of_op = (1, [1], [1], [1], [False], None, [1], None, None, None)
    empty, saving = vt._direct_apply(Empty), vt._direct_apply(Saving)
    times = _best_us(
        {
            "nothing": lambda: None,
            "allocate the output": lambda: torch.empty_like(query),
            "empty autograd.Function": lambda: Empty.apply(leaf),
            "defined op": lambda: op(query, key, value, *nothing, *of_op),
            "na1d": lambda: ours(query, key, value, 1),
            "na1d with autograd": lambda: ours(leaf, key, value, 1),
            "arguments": lambda: with_arguments(query, key, value, 1),
            "extension": lambda: with_extension(query, key, value, 1),
            "direct": lambda: empty(leaf),
            "saving": lambda: saving(False, parameters, leaf, key, value),
        },
        calls,
    )
    output, arguments = times["allocate the output"], times.pop("arguments")
    direct, saving_us = times.pop("direct"), times.pop("saving")
    call = times.pop("extension") - arguments
    first = {"arguments of the Python function": arguments, "call of the extension": call}
    release = min(_vecina.time_release(query, calls) for _ in range(_ROUNDS)) / 1000
    plain = _extension_us(lambda: ours(query, key, value, 1), calls)
    plain["free the output"] = release
    four = [torch.cat((t,) * 4, -2) for t in (query, key, value)]
    of_four = _extension_us(lambda: ours(*four, 1), calls)
    times["kernel"] = max((of_four[_RUN] - plain[_RUN]) / 3, 0.0)
    both = _extension_us(lambda: ours(leaf, key, value, 1), calls)
    questions = list(plain)[:3]
    lines = {
        "na1d": {**first, **plain},
        "na1d with autograd": {
            **first,
            **{name: both.pop(name) for name in questions},
            "autograd.Function, without its own questions": direct - output,
            "its other arguments, five saved tensors": saving_us - direct,
            **both,
        },
    }
    for name, parts in lines.items():
        total = times[name]
        beyond = total - output
        if name != "na1d":
            beyond -= times["empty autograd.Function"]
        times[name] = {
            "lines": parts, "sum": sum(parts.values()), "total": total,
            "around the extension, more than alone": total - sum(parts.values()),
            "beyond": beyond, "beyond, up to the kernel": beyond - times["kernel"],
        }  # fmt: skip
    return times


def print_overhead(calls: int, as_json: bool) -> None:
    times = measure_overhead(calls)
    if as_json:
        print(json.dumps(times))
        return

    def show(name: str, microseconds: float, indent: str = "") -> None:
        print(f"{indent + name:<52} {microseconds:6.2f} us")

    for name, figure in times.items():
        if not isinstance(figure, dict):
            show(name, figure)
            continue
        print()
        show(name, figure["total"])
        for line, microseconds in figure["lines"].items():
            show(line, microseconds, "  ")
        for line in list(figure)[1:]:
            if line != "total":
                show(line, figure[line], "  = " if line == "sum" else "  ")
