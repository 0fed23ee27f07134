# SPDX-License-Identifier: MIT
"""Whether contestants computed the same, so that nobody is timed who computes something else."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the largest number. f32: on GPUs others may multiply in TF32. A key too many or too few in a
# window changes more.
_TOLERANCES = {"float64": 1e-9, "float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}


def kept(result) -> list[Tensor]:
    """The tensors, or arrays, of a call's result on the CPU, in double precision."""
    parts = result if isinstance(result, (tuple, list)) else (result,)
    tensors = (part if isinstance(part, Tensor) else torch.tensor(part.tolist()) for part in parts)
    return [tensor.detach().cpu().double() for tensor in tensors]


def why_not_same(result: list[Tensor], wanted: list[Tensor], dtype: str) -> str:
    """What differs of two results that were kept(), in words; empty if nothing does."""
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (result, wanted)]
    if shapes[0] != shapes[1]:
        return f"its shapes are {shapes[0]}, not {shapes[1]}"
    for part, other in zip(result, wanted):
        difference = ((part - other).abs().max() / other.abs().max()).item()
        if not difference <= _TOLERANCES[dtype]:  # NaN too
            return (
                f"it differs by {difference:.2g} of the largest number ({_TOLERANCES[dtype]:g} is "
                "allowed)"
            )
    return ""
