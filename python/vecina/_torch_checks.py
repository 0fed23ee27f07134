# SPDX-License-Identifier: MIT
"""What vecina.torch refuses before a call, in the caller's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from vecina import _vecina

NAMES = (
    "query", "key", "value", "additional_keys", "additional_values", "bias", "lengths",
    "query_lengths", "head_scale",
)  # fmt: skip


def refuse_type(name: str, given):
    kind = "None" if given is None else f"of type {type(given).__name__}"
    raise ValueError(f"{name} is {kind}; a torch.Tensor is needed.")


def check_tensors(tensors, names=NAMES) -> None:
    """What the dispatcher would refuse in its own terms. The first three must be given."""
    for i, (tensor, name) in enumerate(zip(tensors, names)):
        if tensor is None and i > 2:
            continue
        if not isinstance(tensor, Tensor):
            refuse_type(name, tensor)
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
            kind = "nested" if tensor.is_nested else str(tensor.layout)
            kind = "quantized" if tensor.is_quantized else kind
            raise NotImplementedError(f"{name} is {kind}: not yet; use a dense tensor.")


def check_meta(tensors, parameters, lse_dtype: torch.dtype) -> None:
    """The library's checks of shapes and dtypes, by a call of no samples."""
    query = tensors[0]
    if parameters[7] is not None:  # packed: one sample or more, whose lengths nobody knows
        return
    for name, tensor in zip(NAMES, tensors):
        if name in ("bias", "head_scale") or tensor is None or not (query.ndim and tensor.ndim):
            continue
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, query {query.shape[0]}.")
    whole = (5, 8)  # without a batch
    stand_ins = [
        None if t is None else torch.empty(
            t.shape if i in whole or not t.ndim else (0, *t.shape[1:]), dtype=t.dtype, device="cpu"
        )
        for i, t in enumerate(tensors)
    ]  # fmt: skip
    if stand_ins[5] is not None:
        stand_ins[5] = stand_ins[5].to(lse_dtype)
    _vecina.attend_plain(*stand_ins, *parameters[:-1], "reference", False)
