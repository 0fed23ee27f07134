# SPDX-License-Identifier: MIT
"""What NATTEN's own tests take from inside it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from vecina.compat._backends import HAS_LIBNATTEN  # noqa: F401

_NUM_RAND_SWEEP_TESTS = int(os.environ.get("NATTEN_RAND_SWEEP_TESTS", "1000"))
_RUN_ADDITIONAL_KV_TESTS = os.environ.get("NATTEN_RUN_ADDITIONAL_KV_TESTS", "1") != "0"
_RUN_FLEX_TESTS = os.environ.get("NATTEN_RUN_FLEX_TESTS", "1") != "0"


def compute_delta(out: Tensor, d_out: Tensor, delta: Tensor, num_rows: int | None = None) -> None:
    """Writes the sum of out * d_out over the last dimension."""
    delta.copy_((out.to(delta.dtype) * d_out.to(delta.dtype)).sum(-1).view_as(delta))


def is_fp8(dtype: torch.dtype) -> bool:
    return dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
