# SPDX-License-Identifier: MIT
"""Calls of vecina.numpy as a framework that derives by itself needs them: forward, backward.

vecina.mlx and vecina.jax are these calls, with their arrays turned into NumPy's and back.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable

import numpy as np

from vecina import numpy as vn

_SIDE = ("additional_keys", "additional_values", "bias")
# head_scale has no gradient: what it goes with, query and key in float8_e4m3fn, has none either.
_WHOLE = ("query", "key", "value", *_SIDE, "head_scale")
#: function -> (its backward function, the name of its result there, arrays that may be traced)
_FUNCTIONS = {
    "neighborhood_attention": (vn.neighborhood_attention_backward, "output", _WHOLE),
    "neighborhood_attention_varlen": (vn.neighborhood_attention_varlen_backward, "output", _WHOLE),
    "attention": (vn.attention_backward, "output", _WHOLE),
    "attention_varlen": (vn.attention_varlen_backward, "output", _WHOLE),
    "qk": (vn.qk_backward, "weights", ("query", "key", "additional_keys", "bias")),
    "av": (vn.av_backward, "output", ("attention", "value", "additional_values")),
}
_WITHOUT_LSE = ("qk", "av")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn")


def _identity(value):
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


@dataclasses.dataclass(frozen=True)
class Call:
    """What to compute on NumPy's arrays that are given later, in the order of names.

    It holds none of the arrays that may be traced. Equal calls compute the same.
    """

    name: str
    names: tuple[str, ...]  # of the arrays that may be traced
    given: dict = dataclasses.field(compare=False)  # the other arguments by name
    identity: tuple  # given, as what can be hashed; 1, 1.0 and True differ

    def forward(self, values) -> tuple:
        """(output, lse), or the one result of qk() and av()."""
        more = dict(return_lse=True) if self.name not in _WITHOUT_LSE else {}
        found = getattr(vn, self.name)(**dict(zip(self.names, values)), **self.given, **more)
        return found if more else (found,)

    def backward(self, values, results, gradients) -> list:
        """A gradient for each array, in their order."""
        if "head_scale" in self.names:
            raise NotImplementedError("query and key in float8_e4m3fn have no gradients.")
        function, result, _ = _FUNCTIONS[self.name]
        named = {f"grad_{result}": gradients[0]}
        if self.name not in _WITHOUT_LSE:
            named |= dict(output=results[0], lse=results[1], grad_lse=gradients[1])
        found = function(**dict(zip(self.names, values)), **named, **self.given)
        return [found[f"grad_{n}"] for n in self.names]


class _Merge(Call):
    """merge_attentions(); the first half of the arrays are outputs."""

    def forward(self, values) -> tuple:
        count = len(values) // 2
        return vn.merge_attentions(values[:count], values[count:], **self.given)

    def backward(self, values, results, gradients) -> list:
        count = len(values) // 2
        found = vn.merge_attentions_backward(
            values[:count], values[count:], *gradients, **self.given
        )
        return [*found[0], *found[1]]


def _check(name: str, argument: str, array, array_types: tuple[type, ...]) -> None:
    if not isinstance(array, array_types):
        needed = f"{array_types[0].__module__}.{array_types[0].__name__}"
        raise ValueError(f"{name}: {argument} is {type(array).__name__}; {needed} is needed.")
    dtype = str(array.dtype).rpartition(".")[2]
    if dtype not in _DTYPES:  # uint16 too, which vecina.numpy takes for bfloat16
        raise ValueError(f"{name}: {argument} is {dtype}; one of {', '.join(_DTYPES)} is needed.")
    if not array.ndim:
        raise ValueError(f"{name}: {argument} has no dimensions.")


def functions(run: Callable, array_types: tuple, to_numpy: Callable, module: str) -> dict:
    """The functions of vecina.numpy by name, of a framework's arrays, for a module.

    run(call, arrays) gives the results of a call; to_numpy(argument) gives NumPy's array of an
    array, and anything else as it is.
    """

    def computed(kind: type[Call], name: str, arrays: dict, given: dict) -> tuple:
        for argument, array in arrays.items():
            _check(name, argument, array, array_types)
        # Copies, because a call may be kept and serve for its equals.
        given = {n: copy.deepcopy(to_numpy(value)) for n, value in given.items()}
        identity = tuple((n, _identity(value)) for n, value in sorted(given.items()))
        return run(kind(name, tuple(arrays), given, identity), tuple(arrays.values()))

    def make(name):
        original = getattr(vn, name)
        signature = inspect.signature(original)
        traceable = _FUNCTIONS[name][2]

        @functools.wraps(original)
        def function(*args, **keywords):
            given = signature.bind(*args, **keywords).arguments
            arrays = {n: given.pop(n) for n in traceable if n in given}
            arrays = {
                n: array
                for n, array in arrays.items()
                if array is not None or signature.parameters[n].default is inspect.Parameter.empty
            }
            return_lse = given.pop("return_lse", False)
            results = computed(Call, name, arrays, given)
            return results if return_lse else results[0]

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
        if len(outputs) < 2 or len(outputs) != len(lses):
            raise ValueError(
                "merge_attentions takes two or more outputs and as many lses, not "
                f"{len(outputs)} and {len(lses)}."
            )
        arrays = {f"outputs[{i}]": output for i, output in enumerate(outputs)}
        arrays |= {f"lses[{i}]": lse for i, lse in enumerate(lses)}
        return computed(_Merge, "merge_attentions", arrays, dict(backend=backend))

    made["merge_attentions"] = merge_attentions
    for function in made.values():
        function.__module__ = module
    return made
