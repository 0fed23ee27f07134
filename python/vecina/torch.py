# SPDX-License-Identifier: MIT
"""Neighborhood attention on PyTorch tensors, differentiable.

{layout}
{strides}

dtypes: float16, bfloat16, float32, float64. lse and bias are float32 (float64 for float64).
Gradients of output and lse flow to query, key, value, additional tokens and bias; they do not have
gradients themselves, and there are no derivatives in forward mode.

{e4m3}

{errors}
"""

# An eager call goes straight to the extension; autograd is a Function around that. The defined ops
# serve whoever must see an op: torch.compile, torch.export, fake tensors, modes, subclasses.

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

try:
    import torch
except ImportError as error:
    raise ImportError("vecina.torch needs PyTorch: pip install torch") from error

from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from vecina import _vecina
from vecina._docs import documented, filled
from vecina._shapes import Axes, Flags, extents_of, output_shape, rank_of
from vecina._torch_checks import check_meta, check_tensors, refuse_type
from vecina._torch_derivatives import forward_ad, is_batch, refuse_tangents, register_autograd
from vecina._windows import per_axis

__doc__ = filled(__doc__ or "")

_ATTENTION = 0
_E4M3 = torch.float8_e4m3fn
# query, key, value, additional_keys, additional_values, bias, lengths, query_lengths, head_scale
_NUM_TENSORS = 9
_NUM_BACKWARD_TENSORS = 8  # without head_scale
_NUM_GRADIENTS = 6
# rank, kernel_size, stride, dilation, is_causal, scale, output_stride, extents, query_extent,
# backend; extents are the largest ones of packed samples, else None
_NUM_PARAMETERS = 10


def _lse_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _new_outputs(tensors, parameters):
    query, value = tensors[0], tensors[2]
    step = 1 if parameters[7] else parameters[6]  # packed: every token is a query
    shape = output_shape(query.shape, value.shape, step)
    return value.new_empty(shape), value.new_empty(shape[:-1], dtype=_lse_dtype(value))


def _new_gradients(tensors):
    return [
        None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in tensors[:_NUM_GRADIENTS]
    ]


def _prototype(value: Tensor, shape, is_lse: bool) -> Tensor:
    """What empty_like() makes an output of: one element seen as many."""
    return value.new_empty((1,), dtype=_lse_dtype(value) if is_lse else None).expand(shape)


def _new_memory(query: Tensor, bytes: int) -> Tensor:
    return query.new_empty((bytes + 3) // 4, dtype=torch.float32)


_has_transforms = torch._C._are_functorch_transforms_active
_vecina.set_framework(
    (Tensor, nn.Parameter),
    (
        torch._C._len_torch_dispatch_stack,
        _has_transforms,
        torch._C._is_tracing,
    ),
    (vars(forward_ad), "_current_level"),
    torch._C._is_any_autocast_enabled,
    torch.is_grad_enabled,
    torch.empty_like,
    _prototype,
    _new_memory,
    torch.empty(0).is_neg,
)
_attend, _attend_plain = _vecina.attend, _vecina.attend_plain
# Other ways to compile and to export have a mode on, which the extension sees.
_is_compiling = torch.compiler.is_dynamo_compiling


_may_be_nondeterministic = False


def allow_nondeterministic_backward(mode: bool = True) -> None:
    """Allows a faster backward whose bits may differ from run to run, in the whole process.

    Off by default: the same tensors give the same bits. It makes a difference for large windows in
    float16 and bfloat16 on a GPU, where gradients of queries are then added up in any order; see
    docs/backends.md. While torch.use_deterministic_algorithms() is on, it has no effect.
    """
    global _may_be_nondeterministic
    _may_be_nondeterministic = bool(mode)


def is_nondeterministic_backward_allowed() -> bool:
    """What allow_nondeterministic_backward() was told, False while torch wants determinism."""
    return _may_be_nondeterministic and not torch.are_deterministic_algorithms_enabled()


def _refuse_gradients():
    raise NotImplementedError(
        "query and key in float8_e4m3fn have no gradients, nor has what goes with them. Call under "
        "torch.no_grad()."
    )


def _run_backward(tensors, output, lse, grad_output, grad_lse, parameters):
    grad_output = grad_output.resolve_neg()
    if grad_output.stride(-1) != 1 and grad_output.shape[-1] > 1:  # expanded, as by sum()
        grad_output = grad_output.contiguous()
    if grad_lse is not None:
        grad_lse = grad_lse.resolve_neg()
        if grad_lse.ndim and grad_lse.stride(-1) != 1:
            grad_lse = grad_lse.contiguous()
    gradients = _new_gradients(tensors)
    _vecina.backward(
        *tensors, output, lse, grad_output, grad_lse, *gradients, *parameters,
        lambda bytes: _new_memory(tensors[0], bytes), is_nondeterministic_backward_allowed(),
    )  # fmt: skip
    return gradients


# The defined ops. Optional gradients are tensors of no element. Flags are int[], because
# torch.jit.trace takes no bool[].

_PARAMETERS = (
    "int rank, int[] kernel_size, int[] stride, int[] dilation, int[] is_causal, float? scale, "
    "int[] output_stride, int[]? extents, int[]? query_extent, str? backend"
)
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? additional_keys, Tensor? additional_values, "
    "Tensor? bias, Tensor? lengths, Tensor? query_lengths"
)
_library = torch.library.Library("vecina", "DEF")
_library.define(f"forward({_INPUTS}, Tensor? head_scale, {_PARAMETERS}) -> (Tensor, Tensor)")
_library.define(
    f"backward({_INPUTS}, Tensor output, Tensor lse, Tensor grad_output, Tensor? grad_lse, "
    f"{_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define("merge(Tensor[] outputs, Tensor[] lses, str? backend) -> (Tensor, Tensor)")
_library.define(
    "merge_backward(Tensor[] outputs, Tensor[] lses, Tensor grad_output, Tensor? grad_lse, "
    "str? backend) -> Tensor[]"
)


def _with_flags(parameters, at: int):
    """The parameters of an op with is_causal, which stands there, as flags again."""
    return (*parameters[:at], [bool(flag) for flag in parameters[at]], *parameters[at + 1 :])


def _forward_op(*args):
    return _attend_plain(*args[:_NUM_TENSORS], *_with_flags(args[_NUM_TENSORS:], 4), True)


def _forward_fake(*args):
    return _new_outputs(args[:_NUM_TENSORS], args[_NUM_TENSORS:])


def _or_empty(query, gradients):
    return tuple(query.new_empty((0,)) if g is None else g for g in gradients)


def _backward_op(*args):
    results = args[_NUM_BACKWARD_TENSORS:-_NUM_PARAMETERS]
    parameters = _with_flags(args[-_NUM_PARAMETERS:], 4)
    gradients = _run_backward(args[:_NUM_BACKWARD_TENSORS], *results, parameters)
    return _or_empty(args[0], gradients)


def _backward_fake(*args):
    return _or_empty(args[0], _new_gradients(args[:_NUM_BACKWARD_TENSORS]))


def _new_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _merge_op(outputs, lses, backend):
    output, lse = _new_like(outputs[0]), _new_like(lses[0])
    _vecina.merge(outputs, lses, output, lse, backend)
    return output, lse


def _merge_fake(outputs, lses, backend):
    return _new_like(outputs[0]), _new_like(lses[0])


def _merge_backward_op(outputs, lses, grad_output, grad_lse, backend):
    grad_output = grad_output.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grad_outputs, grad_lses = [_new_like(t) for t in outputs], [_new_like(t) for t in lses]
    _vecina.merge_backward(
        outputs, lses, grad_output, grad_lse, grad_outputs, grad_lses, backend
    )
    return grad_outputs + grad_lses


def _merge_backward_fake(outputs, lses, grad_output, grad_lse, backend):
    return [_new_like(t) for t in [*outputs, *lses]]


for _name, _op, _fake in (
    ("forward", _forward_op, _forward_fake),
    ("backward", _backward_op, _backward_fake),
    ("merge", _merge_op, _merge_fake),
    ("merge_backward", _merge_backward_op, _merge_backward_fake),
):
    _library.impl(_name, _op, "CPU")
    _library.impl(_name, _op, "CUDA")
    torch.library.register_fake(f"vecina::{_name}", _fake, lib=_library)


def _setup_forward(ctx, inputs, output):
    if inputs[0].dtype is _E4M3:
        _refuse_gradients()
    ctx.save_for_backward(*inputs[:_NUM_BACKWARD_TENSORS], *output)
    ctx.parameters = inputs[_NUM_TENSORS:]
    ctx.set_materialize_grads(False)


def _forward_gradients(ctx, grad_output, grad_lse):
    *tensors, output, lse = ctx.saved_tensors
    if grad_output is None:
        if grad_lse is None:
            return (None,) * (_NUM_TENSORS + len(ctx.parameters))
        grad_output = torch.zeros_like(output)
    gradients = torch.ops.vecina.backward(
        *tensors, output, lse, grad_output, grad_lse, *ctx.parameters
    )
    gradients = [None if t is None else g for t, g in zip(tensors, gradients)]
    rest = _NUM_TENSORS - _NUM_GRADIENTS + len(ctx.parameters)
    return (*gradients, *(None,) * rest)


register_autograd(_library, "forward", _forward_gradients, _setup_forward)
register_autograd(_library, "backward")


def _setup_merge(ctx, inputs, output):
    outputs, lses, ctx.backend = inputs
    ctx.save_for_backward(*outputs, *lses)
    ctx.count = len(outputs)


def _merge_gradients(ctx, grad_output, grad_lse):
    tensors = list(ctx.saved_tensors)
    gradients = torch.ops.vecina.merge_backward(
        tensors[: ctx.count], tensors[ctx.count :], grad_output, grad_lse, ctx.backend
    )
    return gradients[: ctx.count], gradients[ctx.count :], None


register_autograd(_library, "merge", _merge_gradients, _setup_merge)
register_autograd(_library, "merge_backward")


def _fold(tensor, dim, size: int):
    """[size, batch, ...] as [size * batch, ...]; what vmap does not go over is repeated."""
    if tensor is None:
        return None
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _unfolded(results, size: int, query, dim):
    """[size * batch, ...] as [size, batch, ...]; query's batch, since size may be 0."""
    batch = query.shape[1 if dim == 0 else 0]
    return tuple(result.unflatten(0, (size, batch)) for result in results)


def _forward_vmap(info, in_dims, *args):
    # One call over a larger batch; autograd is below, so that gradients are one call too.
    for i, name in ((5, "a bias"), (8, "head_scale")):
        if in_dims[i] is not None:
            raise NotImplementedError(f"vmap over {name}: not yet.")
    if args[-3] is not None:
        raise NotImplementedError("vmap over packed samples: not yet; pack them all instead.")
    tensors = [
        args[i] if i in (5, 8) else _fold(args[i], in_dims[i], info.batch_size)
        for i in range(_NUM_TENSORS)
    ]
    found = torch.ops.vecina.forward(*tensors, *args[_NUM_TENSORS:])
    return _unfolded(found, info.batch_size, args[0], in_dims[0]), (0, 0)


torch.library.register_vmap("vecina::forward", _forward_vmap, lib=_library)


def _merge_vmap(info, in_dims, outputs, lses, backend):
    size = info.batch_size
    first = outputs[0], in_dims[0][0] if in_dims[0] else None
    outputs, lses = (
        [_fold(t, dim, size) for t, dim in zip(tensors, dims or [None] * len(tensors))]
        for tensors, dims in zip((outputs, lses), in_dims)
    )
    found = torch.ops.vecina.merge(outputs, lses, backend)
    return _unfolded(found, size, *first), (0, 0)


torch.library.register_vmap("vecina::merge", _merge_vmap, lib=_library)


def _flops(query, value, key, additional, parameters) -> int:
    """Of both products. A window that causality cuts counts whole."""
    rank, kernel_size, output_stride = parameters[0], parameters[1], parameters[6]
    shape = output_shape(query, value, list(output_stride)) if rank else query
    keys = math.prod(kernel_size) if rank else key[1]
    keys += additional[1] if additional is not None else 0
    return 2 * math.prod(shape[:-1]) * keys * (query[-1] + value[-1])


@register_flop_formula(torch.ops.vecina.forward)
def _forward_flops(query, key, value, additional, *rest, out_shape=None, **_) -> int:
    return _flops(query, value, key, additional, rest[5:])


@register_flop_formula(torch.ops.vecina.backward)
def _backward_flops(query, key, value, additional, *rest, out_shape=None, **_) -> int:
    """Five products: the logits once more, and four gradients."""
    dims = 3 * query[-1] + 2 * value[-1]
    return _flops(query, value, key, additional, rest[8:]) * dims // (query[-1] + value[-1])


def _direct_apply(function: type[torch.autograd.Function]):
    """function.apply without what it looks for, transforms: the caller has seen that none is on."""
    return super(torch.autograd.Function, function).apply


class _Forward(torch.autograd.Function):
    """The eager path with autograd: no op, no dispatcher. Tensors at the end may be left out."""

    @staticmethod
    def forward(ctx, return_lse, parameters, *tensors):
        if tensors[0].dtype is _E4M3:
            _refuse_gradients()
        missing = (None,) * (_NUM_TENSORS - len(tensors))
        found = _attend_plain(*tensors, *missing, *parameters, True)
        if found is None:  # the memory of one holds the other sign
            tensors = [None if t is None else t.resolve_neg() for t in tensors]
            found = _attend_plain(*tensors, *missing, *parameters, True)
        output, lse = found
        ctx.save_for_backward(*tensors, output, lse)
        ctx.parameters = parameters
        ctx.set_materialize_grads(False)
        return (output, lse) if return_lse else output

    @staticmethod
    def backward(ctx, grad_output, grad_lse=None):
        *tensors, output, lse = ctx.saved_tensors
        refuse_tangents((grad_output, grad_lse, *tensors))
        count = len(tensors)
        if grad_output is None:
            if grad_lse is None:
                return (None,) * (2 + count)
            grad_output = torch.zeros_like(output)
        tensors = (tensors + [None] * _NUM_TENSORS)[:_NUM_BACKWARD_TENSORS]
        results = (*tensors, output, lse, grad_output, grad_lse)
        # The op says no to who derives the gradients (create_graph) and takes batches of them.
        if torch.is_grad_enabled() or is_batch(grad_output) or is_batch(grad_lse):
            found = torch.ops.vecina.backward(*results, *_schema_parameters(ctx.parameters))
            gradients = [None if t is None else g for t, g in zip(tensors, found)]
        else:
            gradients = _run_backward(tensors, *results[len(tensors):], ctx.parameters)
        return (None, None, *(gradients + [None] * 3)[:count])


_apply_forward = _direct_apply(_Forward)


def _listed(name: str, value, rank: int):
    """One int for each axis, as the schemas of the ops want it; these take bools for ints too."""
    if value is None:
        return []
    if name == "is_causal":
        return [int(flag) for flag in per_axis(name, bool, value, max(rank, 1))]
    values = [value] * max(rank, 1) if isinstance(value, int) else list(value)
    for item in values:
        if isinstance(item, bool):
            raise ValueError(f"{name} is {value!r}; int is needed.")
    return values


def _schema_parameters(parameters):
    rank, *window, scale, output_stride, extents, query_extent, backend = parameters
    names = "kernel_size", "stride", "dilation", "is_causal"
    lengths = ("the largest length", extents), ("the largest query length", query_extent)
    return (
        rank, *(_listed(name, value, rank) for name, value in zip(names, window)), scale,
        _listed("output_stride", output_stride, rank),
        *(None if extent is None else _listed(name, extent, rank) for name, extent in lengths),
        backend,
    )  # fmt: skip


_is_decomposing = False


@contextlib.contextmanager
def decompose():
    """Inside, neighborhood_attention() is composed of PyTorch's own operations, by qk() and av().

    For exporters (ONNX and others) and devices that know no op of vecina: with shapes that are
    fixed, what remains are gathers, products and a softmax. Slow, and tokens x window x head_dim
    numbers of memory. ``lengths`` are not taken. It holds for every thread of the process.
    """
    global _is_decomposing
    before, _is_decomposing = _is_decomposing, True
    try:
        yield
    finally:
        _is_decomposing = before


def _composed(tensors, parameters, return_lse: bool):
    query, key, value, additional_keys, additional_values, bias, lengths, _, head_scale = tensors
    if head_scale is not None:
        raise NotImplementedError("head_scale inside decompose(): it is for float8_e4m3fn alone.")
    if any(t is not None and t.dtype is _E4M3 for t in tensors):
        raise NotImplementedError("float8_e4m3fn inside decompose(): PyTorch has no products of it.")
    rank, kernel_size, stride, dilation, is_causal, scale, output_stride, *_ = parameters
    if lengths is not None:
        raise NotImplementedError("lengths inside decompose(): not yet.")
    if rank == _ATTENTION:
        if is_causal:
            raise NotImplementedError("causal attention() inside decompose(): not yet.")
        shape = (*query.shape[:2], key.shape[-2], -1, query.shape[-1])
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if additional_keys is not None:
            key = torch.cat((key, additional_keys), 1)
            value = torch.cat((value, additional_values), 1)
        logits = torch.einsum("bqhgd,bkhd->bqhgk", query.reshape(shape) * scale, key)
        output = torch.einsum("bqhgk,bkhd->bqhgd", logits.softmax(-1), value)
        output, logits = output.flatten(2, 3), logits.flatten(2, 3)
    else:
        window = (kernel_size, stride, dilation, is_causal)
        logits = qk(
            query, key, *window, scale, additional_keys=additional_keys, bias=bias,
            output_stride=output_stride,
        )  # fmt: skip
        output = av(
            logits.softmax(-1).to(value.dtype), value, *window, additional_values=additional_values,
            output_stride=output_stride,
        )  # fmt: skip
    return (output, logits.to(_lse_dtype(query)).logsumexp(-1)) if return_lse else output


def _is_plain(tensors) -> bool:
    """True if nobody but autograd watches: no compiler, mode, transform, subclass or tangents."""
    return not (
        _is_compiling() or forward_ad._current_level >= 0 or _vecina.is_watched(*tensors)
    )


def _call(tensors, parameters, return_lse: bool):
    """What attend() leaves: autocast, ops for those who watch, gradients."""
    query = tensors[0]
    if query.is_meta:  # shapes only; autocast knows no such device
        is_seen = _is_compiling() or _is_decomposing or _vecina.is_watched(*tensors)
        if not (is_seen or torch.is_autocast_enabled()):
            check_meta(tensors, parameters, _lse_dtype(tensors[2]))
        if _is_decomposing:
            return _composed(tensors, parameters, return_lse)
        output, lse = torch.ops.vecina.forward(*tensors, *_schema_parameters(parameters))
        return (output, lse) if return_lse else output
    is_double = torch.float64 in (query.dtype, tensors[2].dtype)
    if not is_double and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        cast = (t if t is None or t.dtype is _E4M3 else t.to(dtype) for t in tensors[:5])
        tensors = (*cast, *tensors[5:])
    bias = tensors[5]
    if bias is not None and bias.dtype != _lse_dtype(tensors[2]):
        tensors = (*tensors[:5], bias.to(_lse_dtype(tensors[2])), *tensors[6:])
    if _is_decomposing:
        return _composed(tensors, parameters, return_lse)
    if not _is_plain(tensors):
        output, lse = torch.ops.vecina.forward(*tensors, *_schema_parameters(parameters))
        return (output, lse) if return_lse else output
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply_forward(return_lse, parameters, *tensors)
    return _attend_plain(*tensors, *parameters, return_lse)


def _dispatch(tensors, parameters, return_lse: bool):
    if not (_is_compiling() or _is_decomposing):
        try:
            found = _attend(*tensors, *parameters, return_lse)
        except RuntimeError:
            if not tensors[0].is_meta:
                raise
            found = None
        if found is not None and found is not False:
            return found
        if found is None:
            check_tensors(tensors)
    return _call(tensors, parameters, return_lse)


@documented
def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    head_scale: Tensor | None = None,
    output_stride: Axes = 1,
    return_lse: bool = False,
    backend: str | None = None,
):
    """Each query attends to the window of keys around it; rank from the dimensions of query.

    Args:
        {window}

    Returns:
        {outputs}
    """
    return _neighborhood_attention(
        query, key, value, kernel_size, stride, dilation, is_causal, scale,
        additional_keys=additional_keys, additional_values=additional_values, bias=bias,
        lengths=lengths, head_scale=head_scale, output_stride=output_stride, return_lse=return_lse,
        backend=backend,
    )  # fmt: skip


def _of_rank(rank: int | None):
    """The function with so many axes of tokens; None: as many as query has."""
    name = "neighborhood_attention" if rank is None else f"na{rank}d"

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Axes,
        stride: Axes = 1,
        dilation: Axes = 1,
        is_causal: Flags = False,
        scale: float | None = None,
        *,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        head_scale: Tensor | None = None,
        output_stride: Axes = 1,
        return_lse: bool = False,
        backend: str | None = None,
    ):
        found = None
        if not (_is_compiling() or _is_decomposing):
            try:
                found = _attend(
                    query, key, value, additional_keys, additional_values, bias, lengths, None,
                    head_scale, rank, kernel_size, stride, dilation, is_causal, scale,
                    output_stride, None, None, backend, return_lse,
                )  # fmt: skip
            except RuntimeError:  # DLPack has no such device
                if not query.is_meta:
                    raise
            if found is not None and found is not False:
                return found
            if found is None:
                check_tensors((
                    query, key, value, additional_keys, additional_values, bias, lengths, None,
                    head_scale,
                ))  # fmt: skip
        if rank is not None and query.ndim != rank + 3:
            raise ValueError(
                f"query has {query.ndim} dimensions; {name} takes {rank + 3}: "
                "[batch, tokens..., heads, head_dim]."
            )
        parameters = (
            rank or rank_of(query.shape), kernel_size, stride, dilation, is_causal, scale,
            output_stride, None, None, backend,
        )  # fmt: skip
        if (
            found is False
            and bias is additional_keys is additional_values is lengths is head_scale is None
            and not query.is_meta
        ):
            return _apply_forward(return_lse, parameters, query, key, value)
        tensors = (
            query, key, value, additional_keys, additional_values, bias, lengths, None, head_scale,
        )  # fmt: skip
        return _call(tensors, parameters, return_lse)

    function.__name__ = function.__qualname__ = name
    return function


_neighborhood_attention = _of_rank(None)
na1d, na2d, na3d = _of_rank(1), _of_rank(2), _of_rank(3)
for _rank, _function in enumerate((na1d, na2d, na3d), 1):
    _function.__doc__ = f"neighborhood_attention() with {_rank} axes of tokens."


@documented
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    head_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """
    {attention}
    """
    return _dispatch(
        (query, key, value, additional_keys, additional_values, None, None, None, head_scale),
        (_ATTENTION, None, 1, 1, is_causal, scale, 1, None, None, backend),
        return_lse,
    )


def _check_lengths(lengths, name: str = "lengths") -> None:
    if not isinstance(lengths, Tensor):
        refuse_type(name, lengths)


def _largest(lengths: Tensor | None, given, name: str, window=(1, 1)):
    """The largest extent along each axis; on a device that has to wait for it."""
    if given is not None or lengths is None:
        return given
    if _is_compiling() or _vecina.is_watched(lengths):
        raise ValueError(f"{name} must be given inside torch.compile, torch.export and the like.")
    if lengths.numel() == 0:
        raise ValueError("lengths is empty; one row for each sample is needed.")
    return extents_of(lengths.reshape(len(lengths), -1).amax(0).tolist(), *window)


@documented
def neighborhood_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    *,
    max_lengths: Axes | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    bias: Tensor | None = None,
    head_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """neighborhood_attention() of samples that lie one after another, each of its own extents.

    Args:
        {packed}
        max_lengths: the largest extents, of which no sample may have more; None looks at lengths,
            for which tensors on a device are waited for. torch.compile needs them.
        additional_keys, additional_values: ``[samples, n, heads_kv, head_dim]``.
        The others: as in neighborhood_attention().

    Returns:
        {packed_outputs}
    """
    _check_lengths(lengths)
    if lengths.ndim not in (1, 2):
        raise ValueError(f"lengths has {lengths.ndim} dimensions; [samples, rank] is needed.")
    rank = 1 if lengths.ndim == 1 else lengths.shape[1]
    if rank not in (1, 2, 3):
        raise ValueError(f"lengths has {rank} columns; one, two or three axes are possible.")
    extents = _largest(lengths, max_lengths, "max_lengths", (kernel_size, dilation))
    return _dispatch(
        (query, key, value, additional_keys, additional_values, bias, lengths, None, head_scale),
        (rank, kernel_size, stride, dilation, is_causal, scale, 1, extents, None, backend),
        return_lse,
    )


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    query_lengths: Tensor | None = None,
    max_length: int | None = None,
    max_query_length: int | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    head_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
):
    """attention() of samples that lie one after another, each of its own length.

    Args:
        query, key, value: ``[1, tokens of all samples, heads, head_dim]``.
        lengths: int32 or int64 ``[samples]``: keys of each sample.
        query_lengths: ``[samples]``: queries of each sample; None: as many as keys.
        max_length, max_query_length: the largest ones; None as in neighborhood_attention_varlen().
        The others: as there and in attention().
    """
    _check_lengths(lengths)
    if query_lengths is not None:
        _check_lengths(query_lengths, "query_lengths")
    extents = _largest(lengths, max_length, "max_length")
    query_extent = _largest(query_lengths, max_query_length, "max_query_length")
    return _dispatch(
        (query, key, value, additional_keys, additional_values, None, lengths, query_lengths,
         head_scale),
        (_ATTENTION, None, 1, 1, is_causal, scale, 1, extents, query_extent, backend),
        return_lse,
    )


@documented
def merge_attentions(
    outputs: Sequence[Tensor], lses: Sequence[Tensor], *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """
    {merge}
    Both are differentiable.
    """
    outputs, lses = list(outputs), list(lses)
    if not outputs or not lses:
        raise ValueError("merge takes two or more outputs and as many lses.")
    for name, tensors in (("outputs", outputs), ("lses", lses)):
        for i, tensor in enumerate(tensors):
            check_tensors((tensor,), (f"{name}[{i}]",))
    return torch.ops.vecina.merge(outputs, lses, backend)


# At the end, because the modules call the functions above.
from vecina._torch_modules import (  # noqa: E402
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from vecina._torch_split import av, qk  # noqa: E402

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "allow_nondeterministic_backward",
    "attention",
    "attention_varlen",
    "av",
    "decompose",
    "is_nondeterministic_backward_allowed",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_attention_varlen",
    "qk",
]
