# SPDX-License-Identifier: MIT
"""NATTEN's types."""

from __future__ import annotations

import enum
from typing import Union

DimensionType = tuple[int, ...]
DimensionTypeOrDed = Union[int, DimensionType]
CausalArgType = tuple[bool, ...]
CausalArgTypeOrDed = Union[bool, CausalArgType]
for _rank in (1, 2, 3):
    globals()[f"Dimension{_rank}DType"] = tuple[(int,) * _rank]
    globals()[f"Dimension{_rank}DTypeOrDed"] = Union[int, tuple[(int,) * _rank]]
    globals()[f"CausalArg{_rank}DType"] = tuple[(bool,) * _rank]
    globals()[f"CausalArg{_rank}DTypeOrDed"] = Union[bool, tuple[(bool,) * _rank]]


class KernelSchedule(enum.Enum):
    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2
