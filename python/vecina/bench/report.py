# SPDX-License-Identifier: MIT
"""Results as a table, as JSON and as a picture; the forms are those of ``vecina bench``."""

from __future__ import annotations

import dataclasses
import platform

import vecina
from vecina.bench.rows import Row


@dataclasses.dataclass
class Times:
    median_ms: float  # sorted[count // 2]: the upper median if count is even
    min_ms: float
    spread: float  # middle half of the times / median

    @classmethod
    def of(cls, times_ms: list[float]) -> Times:
        ordered, count = sorted(times_ms), len(times_ms)
        median = ordered[count // 2]
        return cls(median, ordered[0], (ordered[count * 3 // 4] - ordered[count // 4]) / median)


@dataclasses.dataclass
class Result:
    row: Row
    times: dict[str, Times | None]  # by contestant; None: it cannot

    @property
    def winner(self) -> str | None:
        """The fastest, if two or more ran."""
        ran = {name: t.median_ms for name, t in self.times.items() if t}
        return min(ran, key=ran.get) if len(ran) > 1 else None

    @property
    def ratio(self) -> float | None:
        """Slowest / fastest."""
        ran = [t.median_ms for t in self.times.values() if t]
        return max(ran) / min(ran) if len(ran) > 1 else None


def device(kind: str = "cpu") -> str:
    """The processor by its name, or (``"cuda"``) the GPU."""
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    for backend in vecina.info()["backends"]:
        if "model" in backend["details"]:
            return backend["details"]["model"]
    return platform.processor() or platform.machine()


def _time(times: Times | None) -> str:
    if times is None:
        return "n/a"
    ms = times.median_ms
    return f"{ms:.2f} ms" if ms >= 0.1 else f"{ms * 1000:.0f} µs"


def table(names: list[str], results: list[Result], reasons: list[str], footer: str) -> str:
    """Feature, configuration, a column for each contestant, slowest / fastest, who won."""
    config = max([22, *(len(r.row.config) for r in results)])
    widths = [max(9, len(name)) for name in names]
    cells = [f"{'Feature':<13} {'Config':<{config}}"]
    cells += [f"{name:>{width}}" for name, width in zip(names, widths)]
    lines, last = [" ".join([*cells, f"{'Ratio':>7}", "Winner"])], None
    lines.append("-" * (len(lines[0]) + 4))
    for result in results:
        title = "" if result.row.title == last else result.row.title
        last = result.row.title
        cells = [f"{title:<13} {result.row.config:<{config}}"]
        cells += [f"{_time(result.times[n]):>{w}}" for n, w in zip(names, widths)]
        ratio = "n/a" if result.ratio is None else f"{result.ratio:.1f}x"
        lines.append(" ".join([*cells, f"{ratio:>7}", result.winner or ""]).rstrip())
    return "\n".join([*lines, *reasons, "", footer])


def to_json(names: list[str], results: list[Result], where: str) -> list[dict]:
    found = []
    for result in results:
        row = result.row
        item = {"name": row.name, "feature": row.feature, "dim": f"{len(row.tokens)}d"}
        item |= {f"{n}_ms": t and t.median_ms for n, t in result.times.items()}
        item |= {"ratio": result.ratio, "winner": result.winner}
        for name, times in result.times.items():
            item[f"{name}_min_ms"] = times and times.min_ms
            item[f"{name}_spread"] = times and times.spread
        item |= {
            "dtype": row.dtype_word,
            "problem": row.problem,
            "device": where,
            "version": vecina.__version__,
        }
        found.append(item)
    return found


def plot(path: str, names: list[str], results: list[Result], where: str) -> None:
    """Bars on a logarithmic time axis, as PNG or what the ending of path says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.14 * len(results) * (len(names) + 0.8)), layout="tight")
    axes = figure.subplots()
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        at = [y + i * height for y, r in enumerate(results) if r.times[name]]
        axes.barh(
            at, [r.times[name].median_ms for r in results if r.times[name]], height, label=name
        )
    axes.set_yticks(
        [y + 0.4 - height / 2 for y in range(len(results))],
        [f"{r.row.title}: {r.row.config}" for r in results],
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of one forward call, less is better")
    axes.set_title(f"{where}; vecina {vecina.__version__}", fontsize="small")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
