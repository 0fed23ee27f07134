# SPDX-License-Identifier: MIT
"""The configurations of the benchmark: those of ``vecina bench``, from one file."""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple


class Row(NamedTuple):
    name: str  # the seed's, for example baseline_1d_L256_K7
    feature: str  # what --features takes
    title: str  # the feature as the table shows it
    config: str  # the configuration as the table shows it
    problem: str  # problem line
    kind: str  # output, with_lse, or merge: two calls with lse, then their merge

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(map(int, self.problem.split()[1].split("x")))

    def number(self, word: str, otherwise: int) -> int:
        """The number after a word of the problem line."""
        words = self.problem.split()
        return int(words[words.index(word) + 1]) if word in words else otherwise

    @property
    def dtype(self) -> str:
        return "bfloat16" if "bf16" in self.problem.split() else "float32"

    @property
    def is_dense(self) -> bool:
        """True if the window is the whole of every axis."""
        return all(n == self.number("kernel_size", 0) for n in self.tokens)


def _read() -> dict:
    return json.loads((pathlib.Path(__file__).parents[1] / "bench_rows.json").read_text())


def features() -> list[str]:
    return _read()["features"]


def rows(chosen: list[str] | None = None) -> list[Row]:
    """The 21 rows in order; those of the chosen features only, if any are given."""
    return [Row(**row) for row in _read()["rows"] if not chosen or row["feature"] in chosen]
