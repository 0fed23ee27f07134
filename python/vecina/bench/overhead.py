# SPDX-License-Identifier: MIT
"""``python -m vecina.bench --overhead``: where the time of a call from Python goes, line by line.

The problem has four numbers, so that next to nothing is computed. "Beyond" is what a call costs
more than what any operator would pay in the same run: allocating the output, and with autograd an
empty autograd.Function. Each line is measured on its own, so "not in a line" is what the lines
leave of the whole: calls between them, caches that are colder than in a loop.
"""

from __future__ import annotations

import json
import time

_ROUNDS = 20


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


def _extension_us(arguments: tuple, count: int) -> dict[str, float]:
    """Microseconds of the parts of the extension's attend(), of the round with the least sum."""
    from vecina import _vecina

    rounds = [_vecina.time_attend(count, *arguments) for _ in range(_ROUNDS)]
    best = min(rounds, key=lambda parts: sum(parts.values()))
    clock = best.pop("clock")
    return {name: max(figure - clock, 0.0) / 1000 for name, figure in best.items()}


def measure_overhead(calls: int) -> dict:
    """Microseconds by name; of na1d with and without autograd a dictionary of lines.

    Needs PyTorch.
    """
    import torch

    import vecina.torch as vt

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
        additional_keys=None, additional_values=None, bias=None, lengths=None, output_stride=1,
        return_lse=False, backend=None,
    ):  # fmt: skip
        return vt._is_compiling() or vt._is_decomposing

    query, key, value = torch.randn(3, 1, 4, 1, 1).unbind()
    leaf, lse = query.clone().requires_grad_(), torch.zeros(1, 4, 1)
    nothing, parameters = (None,) * 5, (1, 1, 1, 1, False, None, 1, None, None, None)
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
            "direct": lambda: empty(leaf),
            "saving": lambda: saving(False, parameters, leaf, key, value),
        },
        calls,
    )
    output, arguments = times["allocate the output"], times.pop("arguments")
    direct, saving_us = times.pop("direct"), times.pop("saving")
    first = {"arguments of the Python function": arguments}
    plain = _extension_us((query, key, value, *nothing, *parameters, False), calls)
    questions = list(plain)[:3]
    both = _extension_us((query, key, value, *nothing, *parameters, True), calls)
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
            "not in a line": total - sum(parts.values()), "beyond": beyond,
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
        for line in ("sum", "not in a line", "beyond"):
            show(line, figure[line], "  = " if line == "sum" else "  ")
