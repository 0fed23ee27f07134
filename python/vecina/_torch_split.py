# SPDX-License-Identifier: MIT
"""qk() and av(): the two halves of neighborhood attention.

On the CPU and on CUDA devices they are the library's. Where it has none (other devices), and where
a derivative is asked for that its gradients do not have (of a gradient, forward, torch.func), they
are composed of PyTorch's own operations on gathered windows.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vecina import _vecina, _windows
from vecina import torch as vt
from vecina._docs import documented
from vecina._shapes import Axes, Flags, rank_of, weights_shape
from vecina._torch_checks import check_tensors
from vecina._torch_derivatives import has_tangent, refuse_tangents, register_autograd

# A compiler cannot look into the extension, so to it the tables are an op without tensors.
_library = torch.library.Library("vecina", "FRAGMENT")
_library.define(
    "axis_tables(int tokens, int kernel_size, int stride, int dilation, bool is_causal, "
    "int output_stride, bool right_aligned) -> (Tensor, Tensor, Tensor)"
)


def _axis_tables(*arguments):
    axis = _windows.Axis(int(arguments[0]), *arguments[1:-1])
    return tuple(torch.tensor(rows) for rows in _windows.axis_lists(axis, arguments[-1]))


def _axis_tables_fake(tokens, kernel_size, stride, dilation, is_causal, output_stride, aligned):
    shape = ((tokens + output_stride - 1) // output_stride, kernel_size)
    return (
        torch.empty(shape, dtype=torch.int64),
        torch.empty(shape, dtype=torch.int64),
        torch.empty(shape, dtype=torch.bool),
    )


_library.impl("axis_tables", _axis_tables, "CompositeExplicitAutograd")
torch.library.register_fake("vecina::axis_tables", _axis_tables_fake, lib=_library)


def _make_tables(axes, right_aligned, device, axis_tables=_axis_tables):
    parts = [axis_tables(*axis, right_aligned) for axis in axes]
    return _windows.combine(axes, [tuple(table.to(device) for table in part) for part in parts])


_held_tables = functools.lru_cache(maxsize=64)(_make_tables)


def _tables(axes, right_aligned, device):
    if torch.compiler.is_dynamo_compiling():
        return _make_tables(axes, right_aligned, device, torch.ops.vecina.axis_tables)
    if torch._C._len_torch_dispatch_stack() or torch.compiler.is_compiling():
        return _make_tables(axes, right_aligned, device)  # fake tensors are not for keeping
    return _held_tables(axes, right_aligned, device)


def _axes(tokens, parameters):
    kernel_size, stride, dilation, is_causal, output_stride = parameters[:5]
    return _windows.axes_of(tokens, kernel_size, stride, dilation, is_causal, output_stride)


def _composed_qk(tensors, parameters):
    query, key, additional_keys, bias = tensors
    axes = _axes(query.shape[1:-2], parameters)
    tables = _tables(axes, parameters[5], query.device)
    scale = parameters[6]
    return _windows.compose_qk(torch, tables, query, key, axes, scale, additional_keys, bias)


def _composed_av(tensors, parameters):
    attention, value, additional_values = tensors
    axes = _axes(value.shape[1:-2], parameters)
    tables = _tables(axes, parameters[5], value.device)
    return _windows.compose_av(torch, tables, attention, value, axes, additional_values)


def _new_weights(tensors, parameters):
    query, additional_keys = tensors[0], tensors[2]
    rank = query.ndim - 3
    shape = weights_shape(
        query.shape,
        _windows.per_axis("kernel_size", int, parameters[0], rank),
        _windows.per_axis("output_stride", int, parameters[4], rank),
        None if additional_keys is None else additional_keys.shape,
    )
    return query.new_empty(shape)


def _new_output(tensors, parameters):
    attention, value, _ = tensors
    return value.new_empty((*attention.shape[:-1], value.shape[-1]))


def _new_gradients(tensors):
    return [None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
            for t in tensors]  # fmt: skip


def _contiguous(gradient):
    gradient = gradient.resolve_neg()
    if gradient.stride(-1) != 1 and gradient.shape[-1] > 1:  # expanded, as by sum()
        return gradient.contiguous()
    return gradient


def _native(rank, parameters, scale, backend):
    """The parameters as the extension takes them."""
    kernel_size, stride, dilation, is_causal, output_stride, right_aligned = parameters[:6]
    window = (kernel_size, stride, dilation, is_causal, scale, output_stride)
    return (rank, *window, right_aligned, backend)


def _run_qk(tensors, parameters):
    weights = _new_weights(tensors, parameters)
    _vecina.qk(*tensors, weights, _native(weights.ndim - 3, parameters, *parameters[6:]))
    return weights


def _run_qk_backward(tensors, grad_weights, parameters):
    gradients = _new_gradients(tensors)
    native = _native(grad_weights.ndim - 3, parameters, *parameters[6:])
    _vecina.qk_backward(*tensors, _contiguous(grad_weights), *gradients, native)
    return gradients


def _run_av(tensors, parameters):
    output = _new_output(tensors, parameters)
    _vecina.av(*tensors, output, _native(tensors[1].ndim - 3, parameters, None, parameters[6]))
    return output


def _run_av_backward(tensors, grad_output, parameters):
    gradients = _new_gradients(tensors)
    native = _native(tensors[1].ndim - 3, parameters, None, parameters[6])
    _vecina.av_backward(*tensors, _contiguous(grad_output), *gradients, native)
    return gradients


class _Half:
    """One of the two: its calls of the library and what it is composed of."""

    def __init__(self, name, tensors, parameters, run, run_backward, new_result, composed):
        self.name, self.count = name, len(tensors)
        self.run, self.run_backward, self.composed = run, run_backward, composed
        inputs = ", ".join(tensors)
        gradients = ", ".join(["Tensor"] * self.count)
        _library.define(f"{name}({inputs}, {parameters}) -> Tensor")
        _library.define(
            f"{name}_backward({inputs}, Tensor gradient, {parameters}) -> ({gradients})"
        )

        def op(*args):
            return run(args[: self.count], vt._with_flags(args[self.count :], 3))

        def fake(*args):
            return new_result(args[: self.count], args[self.count :])

        def backward_op(*args):
            parameters = vt._with_flags(args[self.count + 1 :], 3)
            gradients = run_backward(args[: self.count], args[self.count], parameters)
            return vt._or_empty(args[0], gradients)

        def backward_fake(*args):
            return vt._or_empty(args[0], _new_gradients(args[: self.count]))

        def setup(ctx, inputs, output):
            ctx.save_for_backward(*inputs[: self.count])
            ctx.parameters = inputs[self.count :]

        def gradients_of(ctx, gradient):
            tensors = ctx.saved_tensors
            found = self.backward_op(*tensors, gradient, *ctx.parameters)
            found = [None if t is None else g for t, g in zip(tensors, found)]
            return (*found, *(None,) * len(ctx.parameters))

        for suffix, function, fake_function in (
            ("", op, fake),
            ("_backward", backward_op, backward_fake),
        ):
            _library.impl(f"{name}{suffix}", function, "CPU")
            _library.impl(f"{name}{suffix}", function, "CUDA")
            torch.library.register_fake(f"vecina::{name}{suffix}", fake_function, lib=_library)
        register_autograd(_library, name, gradients_of, setup)
        register_autograd(_library, f"{name}_backward")
        self.op = getattr(torch.ops.vecina, name)
        self.backward_op = getattr(torch.ops.vecina, f"{name}_backward")

    def gradients(self, tensors, gradient, parameters):
        if not torch.is_grad_enabled():
            refuse_tangents((gradient, *tensors))
            return self.run_backward(tensors, gradient, parameters)
        # The gradient will be derived in turn.
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(
            self.composed(tensors, parameters), wanted, gradient, create_graph=True
        ))  # fmt: skip
        return [next(found) if t is not None and t.requires_grad else None for t in tensors]


_WINDOW = (
    "int[] kernel_size, int[] stride, int[] dilation, int[] is_causal, int[] output_stride, "
    "bool right_aligned"
)
_qk = _Half(
    "qk", ["Tensor query", "Tensor key", "Tensor? additional_keys", "Tensor? bias"],
    f"{_WINDOW}, float? scale, str? backend", _run_qk, _run_qk_backward, _new_weights, _composed_qk,
)  # fmt: skip
_av = _Half(
    "av", ["Tensor attention", "Tensor value", "Tensor? additional_values"],
    f"{_WINDOW}, str? backend", _run_av, _run_av_backward, _new_output, _composed_av,
)  # fmt: skip


def _flops(weights, head_dim: int) -> int:
    """Of one product. A window that causality cuts counts whole."""
    return 2 * math.prod(weights) * head_dim


@register_flop_formula(torch.ops.vecina.qk)
def _qk_flops(query, *rest, out_shape=None, **_) -> int:
    return _flops(out_shape, query[-1])


@register_flop_formula(torch.ops.vecina.qk_backward)
def _qk_backward_flops(query, key, keys, bias, gradient, *rest, out_shape=None, **_) -> int:
    return 2 * _flops(gradient, query[-1])


@register_flop_formula(torch.ops.vecina.av)
def _av_flops(attention, value, *rest, out_shape=None, **_) -> int:
    return _flops(attention, value[-1])


@register_flop_formula(torch.ops.vecina.av_backward)
def _av_backward_flops(attention, value, *rest, out_shape=None, **_) -> int:
    return 2 * _flops(attention, value[-1])


class _Eager(torch.autograd.Function):
    """The eager path with autograd: no op, no dispatcher."""

    @staticmethod
    def forward(ctx, half, parameters, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.half, ctx.parameters = half, parameters
        return half.run(tensors, parameters)

    @staticmethod
    def backward(ctx, gradient):
        return (None, None, *ctx.half.gradients(ctx.saved_tensors, gradient, ctx.parameters))


_apply_eager = vt._direct_apply(_Eager)


def _call(half, tensors, parameters):
    first, backend = tensors[0], parameters[-1]
    if vt._is_decomposing or (backend is None and first.device.type not in ("cpu", "cuda")):
        return half.composed(tensors, parameters)
    if torch.compiler.is_compiling():
        return _call_op(half, tensors, parameters)
    if vt._has_transforms() or has_tangent(tensors):
        return half.composed(tensors, parameters)
    if not vt._is_plain(tensors):
        return _call_op(half, tensors, parameters)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply_eager(half, parameters, *tensors)
    return half.run(tensors, parameters)


def _call_op(half, tensors, parameters):
    rank = tensors[1].ndim - 3
    names = "kernel_size", "stride", "dilation", "is_causal", "output_stride"
    listed = (vt._listed(name, value, rank) for name, value in zip(names, parameters))
    return half.op(*tensors, *listed, *parameters[5:])


def _cast(tensors):
    """As autocast does with the products of the framework."""
    if tensors[0].is_meta:
        return tensors
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


@documented
def qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    bias: Tensor | None = None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Logits of every query over its window: the first half of neighborhood_attention().

    On the CPU and on CUDA devices the library computes them and their gradients. On other devices,
    for gradients of gradients and forward derivatives, PyTorch's operations on gathered windows do:
    slower, and tokens x window x head_dim numbers of memory.

    Args:
        right_aligned: a causal window that the border cuts has its empty slots first, not last.
        backend: a name of ``vecina.backends()``; None is the best for the tensors.
        The others are those of neighborhood_attention().

    Returns:
        {logits}
    """
    check_tensors((query, key), ("query", "key"))
    rank_of(query.shape, "qk")
    query, key, additional_keys = _cast((query, key, additional_keys))
    if bias is not None and bias.dtype != vt._lse_dtype(query):
        bias = bias.to(vt._lse_dtype(query))
    logits = _call(
        _qk, (query, key, additional_keys, bias),
        (kernel_size, stride, dilation, is_causal, output_stride, right_aligned, scale, backend),
    )  # fmt: skip
    return logits if logits.dtype == query.dtype else logits.to(query.dtype)


def av(
    attention: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    additional_values: Tensor | None = None,
    output_stride: Axes = 1,
    right_aligned: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Weighted sums of values over the windows: the second half of neighborhood_attention().

    attention is ``[batch, queries..., heads, slots]`` as qk() lays it, in the dtype of value; slots
    without a key are not looked at. Returns ``[batch, queries..., heads, head_dim_value]``. Memory
    and speed as with qk().
    """
    check_tensors((attention, value), ("attention", "value"))
    rank_of(value.shape, "av")
    tensors = _cast((attention, value, additional_values))
    return _call(
        _av, tensors,
        (kernel_size, stride, dilation, is_causal, output_stride, right_aligned, backend),
    )  # fmt: skip
