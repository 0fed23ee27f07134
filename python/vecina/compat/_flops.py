# SPDX-License-Identifier: MIT
"""FLOP counting as releases before 0.20 offered it, by fvcore, which counts multiply-adds."""

from __future__ import annotations

import math

from vecina import _torch_split
from vecina import torch as vt


def _known(value):
    """What a trace knows of a value: of a tensor its shape, else the constant that it is."""
    if value.isCompleteTensor():
        return list(value.type().sizes())
    if value.node().kind() == "prim::ListConstruct":
        return [_known(item) for item in value.node().inputs()]
    return value.toIValue()


def _handle(formula):
    """Of fvcore, for an op of which PyTorch's FLOP counter has this formula."""

    def count(inputs, outputs) -> int:
        return formula(*map(_known, inputs), out_val=_known(outputs[0])) // 2

    return count


_HANDLES = {
    "vecina::forward": _handle(vt._forward_flops),
    "vecina::qk": _handle(_torch_split._qk_flops),
    "vecina::av": _handle(_torch_split._av_flops),
}


def add_natten_handle(flop_counter):
    """The counter, which counts vecina's products from then on.

    A window that causality cuts counts whole; softmax and bias do not count.
    """
    return flop_counter.set_op_handle(**_HANDLES)


def get_flops(model, input, disable_warnings: bool = False) -> int:
    """Multiply-adds of model(input), as fvcore counts them."""
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise ImportError("get_flops needs fvcore: pip install fvcore") from error
    counter = add_natten_handle(FlopCountAnalysis(model, input))
    if disable_warnings:
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counter.total()


def _product(shape, kernel_size, return_macs: bool) -> int:
    return math.prod(shape) * math.prod(kernel_size) * (1 if return_macs else 2)


def na_qk_flop_count(
    q_shape, k_shape, kernel_size, dilation, is_causal, is_heads_last, return_macs: bool = False
) -> int:
    """Of query times key, whose shapes are one."""
    if list(q_shape) != list(k_shape):
        raise ValueError(f"query {tuple(q_shape)} and key {tuple(k_shape)} must be alike.")
    return _product(q_shape, kernel_size, return_macs)


def na_av_flop_count(
    a_shape, v_shape, kernel_size, dilation, is_causal, is_heads_last, return_macs: bool = False
) -> int:
    """Of weights times value."""
    return _product(v_shape, kernel_size, return_macs)


def fna_flop_count(
    q_shape, k_shape, v_shape, kernel_size, dilation, is_causal, is_heads_last,
    return_macs: bool = False,
) -> int:  # fmt: skip
    """Of both products; query, key and value have one shape."""
    if not list(q_shape) == list(k_shape) == list(v_shape):
        raise ValueError("query, key and value must have one shape.")
    return 2 * _product(q_shape, kernel_size, return_macs)
