# SPDX-License-Identifier: MIT
"""The configurations of the benchmark: those of ``vecina bench``, from one file, or yours."""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

import vecina

_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16"}
# Of a problem line; the comparison is of what several libraries have.
_NOT_COMPARED = "attention", "output_stride", "scale", "lengths", "allow", "query_key_dtype"


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

    def axes(self, word: str, otherwise: int) -> int | tuple[int, ...]:
        """The number after a word of the problem line, or one for each axis."""
        words = self.problem.split()
        if word not in words:
            return otherwise
        numbers = tuple(map(int, words[words.index(word) + 1].split("x")))
        return numbers if len(numbers) > 1 else numbers[0]

    @property
    def is_causal(self) -> bool | tuple[bool, ...]:
        words = self.problem.split()
        if "causal" not in words:
            return False
        given = words[words.index("causal") + 1 :][:1]
        if not given or given[0][0] not in "01":
            return True
        flags = tuple(flag == "1" for flag in given[0].split("x"))
        return flags if len(flags) > 1 else flags[0]

    @property
    def has_bias(self) -> bool:
        return "bias" in self.problem.split()

    @property
    def dtype_word(self) -> str:
        words = self.problem.split()
        return words[words.index("dtype") + 1] if "dtype" in words else "f32"

    @property
    def dtype(self) -> str:
        """As torch calls it."""
        return _DTYPES[self.dtype_word]

    @property
    def is_full(self) -> bool:
        """True if the window is the whole of every axis, or of what a causal axis has before it."""
        sizes = self.axes("kernel_size", 0)
        return self.tokens == (sizes if isinstance(sizes, tuple) else (sizes,) * len(self.tokens))

    @property
    def is_dense(self) -> bool:
        """True if every query sees every key."""
        causal = self.is_causal
        return self.is_full and not (any(causal) if isinstance(causal, tuple) else causal)


def _read() -> dict:
    return json.loads((pathlib.Path(__file__).parents[1] / "bench_rows.json").read_text())


def features() -> list[str]:
    return _read()["features"]


def rows(chosen: list[str] | None = None) -> list[Row]:
    """The 21 rows in order; those of the chosen features only, if any are given."""
    return [Row(**row) for row in _read()["rows"] if not chosen or row["feature"] in chosen]


def row_of(line: str) -> Row:
    """The row of a problem line, forward with the output alone; ValueError if it is none."""
    vecina.why_not("reference", line or " ")  # the library reads it, and says what is wrong with it
    line = " ".join(line.split())
    for word in _NOT_COMPARED:
        if word in line.split():
            raise ValueError(f"'{word}' is not compared with other libraries: {line}")
    row = Row(line, "problem", "Problem", line, line, "output")
    if row.number("batch", 1) == 0:
        raise ValueError("batch 0 leaves nothing to time.")
    return row
