# SPDX-License-Identifier: MIT
"""Gradients of the ops that vecina.torch defines, and what says that there are no tangents.

torch.library.register_autograd() knows nothing of torch.func.grad, and drops tangents silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad


_BATCHED = torch._C._parse_dispatch_key("Batched")


def is_batch(gradient: Tensor | None) -> bool:
    """Of torch.autograd.grad(is_grads_batched=True)."""
    return gradient is not None and torch._C._dispatch_keys(gradient).has(_BATCHED)


def tensors_of(arguments) -> Iterator[Tensor]:
    """The tensors in arguments, and in lists there."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors_of(argument)


def has_tangent(arguments) -> bool:
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors_of(arguments)
    )


def refuse_tangents(arguments) -> None:
    if has_tangent(arguments):
        raise NotImplementedError("forward-mode derivatives: not yet; use reverse mode.")


def no_gradients(ctx, *gradients):
    raise NotImplementedError("gradients of gradients: not yet.")


class _Op(torch.autograd.Function):
    """An op with its gradients. Tensors are those in arguments, for autograd to see."""

    @staticmethod
    def forward(ctx, registered, keyset, arguments, *tensors):
        if torch._C._are_functorch_transforms_active():
            # Outer transforms derive too: for them the modes are as before apply() ended both.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                found = registered.run(keyset, arguments)
        else:
            found = registered.run(keyset, arguments)
        registered.setup_context(ctx, arguments, found)
        ctx.registered = registered
        ctx.has_tensors = [any(True for _ in tensors_of([a])) for a in arguments]
        return tuple(found) if isinstance(found, list) else found

    @staticmethod
    def backward(ctx, *gradients):
        found = ctx.registered.gradients(ctx, *gradients)
        flat = []
        for gradient, has_tensors in zip(found, ctx.has_tensors):
            if has_tensors:
                flat += gradient if isinstance(gradient, (list, tuple)) else [gradient]
        return (None, None, None, *flat)


# Function.apply() wants a setup_context() and a vmap of its own where transforms are on. Below the
# dispatcher only the innermost of them is left, and its tensors are like others.
_apply = super(torch.autograd.Function, _Op).apply


class _Registered:
    def __init__(self, op, gradients: Callable, setup_context: Callable):
        self.op, self.gradients, self.setup_context = op, gradients, setup_context

    def run(self, keyset, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return self.op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def __call__(self, keyset, *arguments):
        refuse_tangents(arguments)
        tensors = list(tensors_of(arguments))
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return self.run(keyset, arguments)
        with enable_single_level_autograd_function():
            return _apply(self, keyset, arguments, *tensors)


def register_autograd(library, name: str, gradients=no_gradients, setup_context=None) -> None:
    """As that of torch.library, with gradients under torch.func.grad too and without tangents."""
    op = getattr(torch.ops.vecina, name).default
    setup_context = setup_context or (lambda ctx, inputs, output: None)
    library.impl(name, _Registered(op, gradients, setup_context), "Autograd", with_keyset=True)
