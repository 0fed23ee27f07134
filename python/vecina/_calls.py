# SPDX-License-Identifier: MIT
"""Calls of vecina.numpy as a framework that derives by itself needs them: forward, backward.

vecina.mlx and vecina.jax are these calls, with their arrays turned into NumPy's and back.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from vecina import numpy as vn

_SIDE = ("additional_keys", "additional_values", "bias")
_WHOLE = ("query", "key", "value", *_SIDE)
#: function -> (its backward function, the name of its result there, arrays that have gradients)
_FUNCTIONS = {
    "neighborhood_attention": (vn.neighborhood_attention_backward, "output", _WHOLE),
    "neighborhood_attention_varlen": (vn.neighborhood_attention_varlen_backward, "output", _WHOLE),
    "attention": (vn.attention_backward, "output", _WHOLE),
    "attention_varlen": (vn.attention_varlen_backward, "output", _WHOLE),
    "qk": (vn.qk_backward, "weights", ("query", "key", "additional_keys", "bias")),
    "av": (vn.av_backward, "output", ("attention", "value", "additional_values")),
}


class Call:
    """One call: arrays that have gradients by name, and how to compute it on NumPy's arrays.

    forward(arrays) gives a tuple: (output, lse), or the one result of qk() and av().
    backward(arrays, results, gradients) gives a gradient for each array, in their order.
    """

    def __init__(self, arrays: dict, forward: Callable, backward: Callable, given: dict):
        self.arrays, self.forward, self.backward = arrays, forward, backward
        self.given = given  # the other arguments by name


def _call_of(name: str, signature, args, keywords) -> tuple[Call, bool]:
    """(the call, True if only the first of its results was asked for)."""
    backward_function, result, with_gradients = _FUNCTIONS[name]
    bound = signature.bind(*args, **keywords)
    given = bound.arguments
    arrays = {n: given.pop(n) for n in with_gradients if given.get(n) is not None}
    given = {n: value for n, value in given.items() if n not in with_gradients}
    has_lse = name not in ("qk", "av")
    is_first_only = not given.pop("return_lse", False)
    function = getattr(vn, name)

    def forward(values):
        more = dict(return_lse=True) if has_lse else {}
        found = function(**dict(zip(arrays, values)), **given, **more)
        return found if has_lse else (found,)

    def backward(values, results, gradients):
        named = {f"grad_{result}": gradients[0]}
        if has_lse:
            named |= dict(output=results[0], lse=results[1], grad_lse=gradients[1])
        found = backward_function(**dict(zip(arrays, values)), **named, **given)
        return [found[f"grad_{n}"] for n in arrays]

    return Call(arrays, forward, backward, given), is_first_only


def functions(run: Callable[[str, Call], tuple], module: str) -> dict[str, Callable]:
    """The functions of vecina.numpy by name, of arrays that run() takes and gives, for a module."""

    def make(name):
        original = getattr(vn, name)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def function(*args, **keywords):
            call, is_first_only = _call_of(name, signature, args, keywords)
            results = run(name, call)
            return results[0] if is_first_only else results

        return function

    made = {name: make(name) for name in _FUNCTIONS}

    def of_rank(rank):
        original = getattr(vn, f"na{rank}d")
        general = made["neighborhood_attention"]

        @functools.wraps(original)
        def function(query, *args, **keywords):
            vn.check_rank(query, rank)
            return general(query, *args, **keywords)

        return function

    made |= {f"na{rank}d": of_rank(rank) for rank in (1, 2, 3)}

    @functools.wraps(vn.merge_attentions)
    def merge_attentions(outputs, lses, *, backend=None):
        count = len(outputs)

        def forward(values):
            return vn.merge_attentions(values[:count], values[count:], backend=backend)

        def backward(values, results, gradients):
            found = vn.merge_attentions_backward(
                values[:count], values[count:], *gradients, backend=backend
            )
            return [*found[0], *found[1]]

        arrays = dict(enumerate([*outputs, *lses]))
        return run("merge_attentions", Call(arrays, forward, backward, {}))

    made["merge_attentions"] = merge_attentions
    for function in made.values():
        function.__module__ = module
    return made
