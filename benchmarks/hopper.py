#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times Vecina's forward on a Hopper GPU beside NATTEN's Hopper kernels, FlexAttention and cuDNN,
in one process.

    python benchmarks/hopper.py --library build/libvecina.so [--natten LIBRARY] [--flex] [NAME...]
    python benchmarks/hopper.py --from rows.json --plot rows.svg

Needs PyTorch with CUDA; the library is called through its C interface. LIBRARY is made by
natten/build.py: NATTEN's kernels, end to end, with its copies of query, key, value and output into
the order of tiles and back, but for lse; at head_dim 128 the faster of two schedules counts.
FlexAttention gets its tokens in tiles (reordering them is not timed) and is compiled for each
problem; cuDNN has the dense row. --plot, which needs matplotlib, draws the ratios; with --from
those of a run before.

Steady state: each side runs back to back for half a second, of which the second half counts, ours
before and after the others'. What takes less than half a millisecond runs in CUDA graphs. Short
alternating blocks would let one side profit from a GPU that the other has not heated.
"""
import math

import torch

import flex_attention
import gpu


def problem(name, shape, kernel_size, heads, head_dim=128, batch=1, stride=None, **more):
    return dict(name=name, shape=shape, kernel_size=kernel_size, heads=heads, head_dim=head_dim,
                batch=batch, stride=stride, **more)


FLUX, VIDEO = (256, 256), (30, 48, 80)
PROBLEMS = [
    problem("2d-w80", FLUX, (80, 80), 24),
    problem("2d-w80-stride16", FLUX, (80, 80), 24, stride=(16, 16)),
    problem("3d", VIDEO, (18, 24, 24), 24),
    problem("3d-stride", VIDEO, (18, 24, 24), 24, stride=(16, 8, 8)),
    problem("1d-w2048", (32768,), (2048,), 24),
    problem("1d-w2048-h1", (32768,), (2048,), 1),
    problem("2d-w32", FLUX, (32, 32), 24),
    problem("2d-w16", FLUX, (16, 16), 24),
    problem("2d-k31", (128, 128), (31, 31), 8, batch=4),
    problem("1d-w256", (32768,), (256,), 24),
    problem("1d-w128", (4096,), (128,), 16, batch=8),
    problem("2d-k13", (64, 64), (13, 13), 24),
    problem("2d-k13-b4", (128, 128), (13, 13), 8, batch=4),
    problem("3d-k5", (16, 32, 32), (5, 5, 5), 8, batch=2),
    problem("2d-k7-d32", (56, 56), (7, 7), 4, 32, batch=64),
    problem("2d-w80-d64", FLUX, (80, 80), 24, 64),
    problem("3d-d64", VIDEO, (18, 24, 24), 24, 64),
    problem("1d-w2048-d64", (32768,), (2048,), 24, 64),
    problem("2d-w80-stride16-d64", FLUX, (80, 80), 24, 64, stride=(16, 16)),
    problem("dense", (32768,), (32768,), 24),
    # What a feature costs: these have no counterpart.
    problem("2d-w80-causal", FLUX, (80, 80), 24, causal="1x0"),
    problem("2d-w40-dilation2", FLUX, (40, 40), 24, dilation="2x2"),
    problem("4-images-w40", (128, 128), (40, 40), 24, batch=4),
    problem("2d-w80-token", FLUX, (80, 80), 24, tokens=1),
    problem("2d-w80-dv64", FLUX, (80, 80), 24, head_dim_value=64),
    problem("2d-w80-f16", FLUX, (80, 80), 24, dtype="f16"),
    problem("3d-gqa8", VIDEO, (18, 24, 24), 24, heads_kv=3),
]
PEERS = ("natten", "flex", "cudnn")


def line(p):
    joined = lambda values: "x".join(map(str, values))
    text = (f"{len(p['shape'])}d {joined(p['shape'])} kernel_size {joined(p['kernel_size'])} "
            f"batch {p['batch']} heads {p['heads']} heads_kv {p.get('heads_kv', p['heads'])} "
            f"head_dim {p['head_dim']} head_dim_value {p.get('head_dim_value', p['head_dim'])} "
            f"dtype {p.get('dtype', 'bf16')}")
    if p["stride"]:
        text += f" stride {joined(p['stride'])}"
    if "tokens" in p:
        text += f" additional {p['tokens']}"
    for word in ("causal", "dilation"):
        if word in p:
            text += f" {word} {p[word]}"
    return text


def inputs(p):
    torch.manual_seed(0)
    dtype = torch.float16 if p.get("dtype") == "f16" else torch.bfloat16
    heads_kv, value_dim = p.get("heads_kv", p["heads"]), p.get("head_dim_value", p["head_dim"])
    draw = lambda tokens, heads, columns: torch.randn(p["batch"], *tokens, heads, columns,
                                                      device="cuda", dtype=dtype)
    tensors = [draw(p["shape"], p["heads"], p["head_dim"]),
               draw(p["shape"], heads_kv, p["head_dim"]), draw(p["shape"], heads_kv, value_dim)]
    if "tokens" in p:
        tensors += [draw((p["tokens"],), heads_kv, p["head_dim"]),
                    draw((p["tokens"],), heads_kv, value_dim)]
    return tensors


def has_peers(p):
    """Whether it has nothing that the others are not called with here."""
    more = ("causal", "dilation", "tokens", "head_dim_value", "heads_kv", "dtype")
    return not any(word in p for word in more)


def natten_call(natten, p, tensors):
    """The faster of its schedules; None if it has no kernel."""
    runs = natten.forwards(tensors, p["kernel_size"], p["stride"]) if has_peers(p) else []
    return min(runs, key=lambda run: gpu.steady_ms(run, 0.15), default=None)


def cudnn_call(tensors):
    query, key, value = (t.transpose(1, 2) for t in tensors)

    def call():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    return call


def measure(library, natten, with_flex, p, seconds):
    tensors = inputs(p)
    ours = gpu.Vecina(library, line(p), tensors)
    ours()
    torch.cuda.synchronize()
    assert torch.isfinite(ours.lse).all(), "lse was not written"
    row = {"name": p["name"], "problem": line(p), "plan": ours.description}
    first = gpu.steady_ms(ours, seconds)
    theirs = natten_call(natten, p, tensors) if natten else None
    if theirs:
        row["natten_ms"] = gpu.steady_ms(theirs, seconds)
        row["natten_kernel"] = theirs.kernel.name
        row["relative_difference"] = gpu.error(ours.output, theirs.output)
    flex = flex_attention.call(tensors, p["kernel_size"], p["stride"]) if (
        with_flex and has_peers(p)) else None
    if flex:
        row["flex_ms"] = gpu.steady_ms(flex, seconds)
        row["relative_difference_flex"] = gpu.error(flex.tiled(ours.output), flex())
    if p["kernel_size"] == p["shape"]:
        row["cudnn_ms"] = gpu.steady_ms(cudnn_call(tensors), seconds)
    row["ms"] = [first, gpu.steady_ms(ours, seconds)]
    mean = sum(row["ms"]) / 2
    useful = 2 * p["batch"] * p["heads"] * math.prod(p["shape"]) * math.prod(p["kernel_size"]) * (
        p["head_dim"] + p.get("head_dim_value", p["head_dim"]))
    row["useful_tflops"] = useful / mean / 1e9  # without what causality hides
    for peer in PEERS:
        if peer + "_ms" in row:
            row["times_" + peer] = row[peer + "_ms"] / mean
    return row


def print_row(row):
    mean = sum(row["ms"]) / 2
    text = f"{row['name']:22s} {mean:9.4f} ms {row['useful_tflops']:5.0f} useful TFLOP/s"
    for peer in PEERS:
        if peer + "_ms" in row:
            text += f"  {peer} {row[peer + '_ms']:9.4f} ms {row['times_' + peer]:5.2f}x"
    kernel = row["plan"]["details"]["kernels"][0]
    if "predicted_ms" in kernel:
        text += f"  predicted {kernel['predicted_ms'] * kernel.get('launches', 1):.4f}"
    print(text, flush=True)


def plot(path, rows):
    """Bars: how many times as fast as each peer."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if any("times_" + peer in row for peer in PEERS)]
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1), layout="constrained")
    bars = figure.subplots()
    drawn = [peer for peer in PEERS if any("times_" + peer in row for row in rows)]
    for i, peer in enumerate(drawn):
        times = {at + 0.26 * i: row.get("times_" + peer) for at, row in enumerate(rows)}
        times = {place: ratio for place, ratio in times.items() if ratio}
        container = bars.barh(list(times), list(times.values()), 0.26, label=peer)
        bars.bar_label(container, fmt="%.2f", padding=2, fontsize=7)
    bars.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    bars.axvline(1, color="black", linewidth=0.8)
    bars.invert_yaxis()
    bars.set_xlabel("times as fast, end to end")
    bars.legend()
    figure.savefig(path)


def main():
    parser = gpu.parser_of(__doc__, seconds=0.5)
    parser.add_argument("--library", help="libvecina.so")
    parser.add_argument("--flex", action="store_true", help="beside FlexAttention, too")
    parser.add_argument("--from", dest="source", metavar="JSON", help="rows of a run before")
    parser.add_argument("--plot", metavar="FILE", help="where to draw the ratios")
    options = parser.parse_args()
    if options.source and not options.plot:
        parser.error("--from draws: --plot is missing")
    if options.source:
        result = gpu.read(options.source)
        if "runs" in result:  # of benchmarks/results
            result = max(reversed(result["runs"]), key=lambda run: len(run["rows"]))
    elif options.library:
        result = measure_all(options)
    else:
        parser.error("--library or --from is missing")
    if options.plot:
        plot(options.plot, result["rows"])


def measure_all(options):
    library = gpu.Library(options.library)
    result = {**gpu.conditions(), "rows": []}
    for p in PROBLEMS:
        if options.names and p["name"] not in options.names:
            continue
        try:
            row = measure(library, options.natten, options.flex, p, options.seconds)
        except RuntimeError as failure:
            print(f"{p['name']:22s} failed: {failure}", flush=True)
            continue
        print_row(row)
        result["rows"].append(row)
        torch.cuda.empty_cache()
        gpu.write(options.json, result)
    return result


if __name__ == "__main__":
    main()
