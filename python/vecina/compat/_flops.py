# SPDX-License-Identifier: MIT
"""FLOP counting as old releases offered it."""

from __future__ import annotations


def add_natten_handle(flop_counter):
    """Returns the counter as it is: fvcore counts the operations that it knows."""
    return flop_counter


def get_flops(model, input, disable_warnings: bool = False) -> int:
    """Operations of model(input), as fvcore counts them."""
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise ImportError("get_flops needs fvcore: pip install fvcore") from error
    counter = add_natten_handle(FlopCountAnalysis(model, input))
    if disable_warnings:
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counter.total()
