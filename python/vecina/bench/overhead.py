# SPDX-License-Identifier: MIT
"""``python -m vecina.bench --overhead``: what each part of a call from Python costs.

The problem has four numbers, so that next to nothing is computed. Each figure is the best of five
rounds, in microseconds; "beyond" is what remains after the parts that any operator would pay in the
same run: allocating the output, and with autograd an empty autograd.Function.
"""

from __future__ import annotations

import json
import time


def best_us(call, calls: int) -> float:
    """Time of one call, the best of five rounds after a warm-up."""
    for _ in range(200):
        call()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter_ns() - start) / calls)
    return best / 1000


def measure_overhead(calls: int) -> dict[str, float]:
    """Microseconds of each part, by name; needs PyTorch."""
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

    tensor = torch.randn(1, 4, 1, 1)
    output, leaf = torch.empty_like(tensor), tensor.clone().requires_grad_()
    lse = output[..., 0].contiguous()
    nothing = (None,) * 5
    inputs, parameters = (tensor, tensor, tensor, *nothing), (1, 1, 1, 1, False, None, 1)
    parameters += (None, None, None)
    leaves = (leaf, tensor, tensor)
    ours = vt.na1d
    times = {
        "allocate the output": best_us(lambda: torch.empty_like(tensor), calls),
        "empty autograd.Function": best_us(lambda: Empty.apply(leaf), calls),
        "na1d": best_us(lambda: ours(tensor, tensor, tensor, 1), calls),
        "na1d with autograd": best_us(lambda: ours(leaf, tensor, tensor, 1), calls),
        "defined op": best_us(
            lambda: torch.ops.vecina.forward(
                *inputs, 1, [1], [1], [1], [False], None, [1], None, None, None
            ),
            calls,
        ),
        # Parts of na1d, each with those before it.
        "- extension, output, kernel": best_us(
            lambda: _vecina.attend_plain(*inputs, *parameters, False), calls
        ),
        "- the same, who watches": best_us(
            lambda: _vecina.attend(*inputs, *parameters, False), calls
        ),
        # Parts of na1d with autograd.
        "- Function of our arguments": best_us(
            lambda: Saving.apply(False, parameters, *leaves), calls
        ),
        "- extension, two outputs": best_us(
            lambda: _vecina.attend_plain(*inputs, *parameters, True), calls
        ),
    }
    times["na1d, beyond"] = times["na1d"] - times["allocate the output"]
    times["na1d with autograd, beyond"] = (
        times["na1d with autograd"]
        - times["allocate the output"]
        - times["empty autograd.Function"]
    )
    return times


def print_overhead(calls: int, as_json: bool) -> None:
    times = measure_overhead(calls)
    if as_json:
        print(json.dumps(times))
        return
    for name, microseconds in times.items():
        print(f"{name:<28} {microseconds:6.2f} us")
