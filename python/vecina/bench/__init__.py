# SPDX-License-Identifier: MIT
"""``python -m vecina.bench``: the 21 configurations of the seed benchmark, or yours, from Python.

Measured as the seed does: inputs drawn once, warm-up calls, then each call timed on its own,
forward only; the upper median counts. Who computes something else than the first is not timed.
``--overhead`` times the parts of one call instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from vecina.bench import rows as _rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m vecina.bench", description=__doc__)
    add = parser.add_argument
    add("--features", nargs="+", choices=_rows.features(), metavar="NAME",
        help=f"only some of {' '.join(_rows.features())}")
    add("--problem", action="append", metavar="LINE",
        help="time this problem instead (may be repeated), such as '2d 56x56 kernel_size 7 heads 4 "
        "head_dim 32', also with batch, heads_kv, head_dim_value, stride, dilation, causal, "
        "additional, bias, dtype")
    add("--device", choices=("cpu", "cuda"), default="cpu",
        help="where the tensors are (cpu); on cuda the GPU is waited for after each call")
    add("--backends", metavar="A,B",
        help="whom to compare: vecina's backends, sdpa (torch's, with a mask), flex "
        "(FlexAttention), natten, natten-mps, natten-mlx (cpu,sdpa; with cuda tensors "
        "cuda,sdpa,flex)")
    add("--json", nargs="?", const="-", metavar="FILE",
        help="write JSON; - or nothing is standard output, the table then goes to standard error")
    add("--plot", metavar="FILE.png", help="draw the results as bars (needs matplotlib)")
    add("--warmup", type=int, default=5, metavar="N", help="untimed calls first (5)")
    add("--repeats", type=int, default=30, metavar="N", help="timed calls (30)")
    add("--threads", type=int, metavar="N", help="threads of vecina and of torch")
    add("--graph", action="store_true",
        help="time on the GPU, in CUDA graphs of 20 calls, what the GPU does (--device cuda); "
        "without it a call and the wait for the GPU are timed")
    add("--overhead", action="store_true", help="time each part of a call")
    add("--calls", type=int, default=4000, metavar="N", help="calls of a round of --overhead")
    return parser


def _times(call, warmup: int, repeats: int, wait=lambda: None) -> list[float]:
    for _ in range(warmup):
        call()
    wait()
    times_ms = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        wait()
        times_ms.append((time.perf_counter_ns() - start) / 1e6)
    return times_ms


_CALLS_OF_GRAPH = 20


def _graph_times(call, warmup: int, repeats: int) -> list[float]:
    """Milliseconds of the GPU for one call, of replays of a graph of several."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # it makes the inputs
    with torch.cuda.stream(stream):
        for _ in range(max(warmup, 1)):  # what is prepared in a first call cannot be captured
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for _ in range(_CALLS_OF_GRAPH)]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times_ms = []
    for i in range(repeats + 1):  # the first replay uploads the graph
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i > 0:
            times_ms.append(begin.elapsed_time(end) / _CALLS_OF_GRAPH)
    del kept
    return times_ms


@contextlib.contextmanager
def _progress(total: int):
    """A function to call with each row's name; silent where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        shown = iter(range(1, total + 1))
        yield lambda name: print(f"[{next(shown)}/{total}] {name} ...", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda name: progress.update(task, advance=1, description=name)


def _sentence_of(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def measure(
    names: list[str], rows, warmup: int = 5, repeats: int = 30, device: str = "cpu",
    in_graph: bool = False,
):  # fmt: skip
    """(results in the order of rows, why who could not run what, notes); without autograd."""
    import torch

    from vecina.bench import agreement, contestants, report

    makers = {name: contestants.find(name) for name in names}
    wait = [torch.cuda.synchronize] if device == "cuda" else []

    def times_of(call):
        if in_graph:
            return _graph_times(call, warmup, repeats)
        return _times(call, warmup, repeats, *wait)

    results, reasons = [], []
    with torch.no_grad(), _progress(len(rows)) as progress:
        for row in rows:
            progress(row.name)
            inputs, times, first = contestants.draw(row, device), {}, None
            for name, make in makers.items():
                times[name] = None
                try:
                    call = make(row, inputs)
                    measured = times_of(call)
                    result = agreement.kept(call())
                    if first is None:
                        first = name, result
                    why_not = agreement.why_not_same(result, first[1], row.dtype)
                    if why_not:
                        raise contestants.Unavailable(
                            f"{row.name}: not what {first[0]} computed, {why_not}."
                        )
                except (contestants.Unavailable, NotImplementedError) as error:
                    reasons.append(f"n/a on {name}: {error}")
                except (ValueError, RuntimeError) as error:  # another library's ends its row alone
                    if not contestants.is_other(name):
                        raise
                    reasons.append(f"n/a on {name}: {row.name}: {_sentence_of(error)}")
                else:
                    times[name] = report.Times.of(measured)
                    if hasattr(call, "note"):
                        reasons.append(f"{name} {call.note}")
            results.append(report.Result(row, times))
    return results, list(dict.fromkeys(reasons))


def _run(options) -> None:
    import torch

    import vecina
    from vecina.bench import report

    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ValueError("--plot needs matplotlib: pip install matplotlib.") from error
    if options.threads:
        vecina.set_num_threads(options.threads)
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here.")
    if options.graph and options.device != "cuda":
        raise ValueError("--graph needs --device cuda.")
    if options.problem and options.features:
        raise ValueError("--problem excludes --features.")
    chosen = [_rows.row_of(line) for line in options.problem or ()]
    usual = "cuda,sdpa,flex" if options.device == "cuda" else "cpu,sdpa"
    names = (options.backends or usual).split(",")
    results, reasons = measure(
        names, chosen or _rows.rows(options.features), options.warmup, options.repeats,
        options.device, options.graph,
    )  # fmt: skip
    where = report.device(options.device)
    in_graphs = f" of graphs of {_CALLS_OF_GRAPH} calls" if options.graph else ""
    footer = (
        f"{where}; {', '.join(names)}; threads {options.threads or 'default'} (torch "
        f"{torch.get_num_threads()}); {options.warmup} warm-up calls, median of {options.repeats} "
        f"repeats{in_graphs}; vecina {vecina.__version__}, torch {torch.__version__}"
    )
    shown = sys.stderr if options.json == "-" else sys.stdout
    print(report.table(names, results, reasons, footer), file=shown)
    if options.json:
        text = json.dumps(report.to_json(names, results, where), indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            with open(options.json, "w") as file:
                file.write(text)
    if options.plot:
        report.plot(options.plot, names, results, where)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 if the arguments are wrong."""
    options = _parser().parse_args(arguments)
    try:
        for name, least in (("warmup", 0), ("repeats", 1), ("calls", 1), ("threads", 1)):
            value = getattr(options, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value} is below {least}.")
        if options.overhead:
            from vecina.bench import overhead

            overhead.print_overhead(options.calls, options.json is not None)
        else:
            _run(options)
    except (ValueError, OSError) as error:
        print(f"vecina.bench: {error}", file=sys.stderr)
        return 2
    return 0
