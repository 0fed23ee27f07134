#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times Vecina's forward on a Hopper GPU beside NATTEN's Hopper kernels and cuDNN, in one process.

    python benchmarks/hopper.py --library build/libvecina.so [--natten FOLDER] [NAME...]

Needs PyTorch with CUDA; the library is called through its C interface. FOLDER holds a module
``natten_hopper`` with ``Problem(query, key, value, kernel_size, stride, schedule)`` whose
``forward()`` runs NATTEN's kernels end to end, with its permutations of query, key, value and
output: ``schedule`` 0 and 1 are two of its kernels, of which the faster counts.

Steady state: each side runs back to back for half a second, of which the second half counts, ours
before and after NATTEN's. What takes less than half a millisecond runs in CUDA graphs. Short
alternating blocks would let one side profit from a GPU that the other has not heated.
"""
import math

import torch

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


def natten_call(natten, p, tensors):
    """The faster of its two kernels; None if it has none."""
    if any(word in p for word in ("causal", "dilation", "tokens", "head_dim_value", "heads_kv",
                                  "dtype")):
        return None
    try:
        runs = [natten.Problem(*tensors, p["kernel_size"], p["stride"], i) for i in (0, 1)]
    except KeyError:  # not built for this rank and head_dim
        return None
    return min(runs, key=lambda run: gpu.steady_ms(run.forward, 0.15))


def measure(library, natten, p, seconds):
    tensors = inputs(p)
    ours = gpu.Vecina(library, line(p), tensors)
    ours()
    torch.cuda.synchronize()
    assert torch.isfinite(ours.lse).all(), "lse was not written"
    row = {"name": p["name"], "problem": line(p), "plan": ours.description}
    first = gpu.steady_ms(ours, seconds)
    theirs = natten_call(natten, p, tensors) if natten else None
    if theirs:
        row["natten_ms"] = gpu.steady_ms(theirs.forward, seconds)
        row["natten_kernel"] = theirs.fwd
        row["relative_difference"] = gpu.error(ours.output, theirs.forward()[0])
    if p["name"] == "dense":
        query, key, value = (t.transpose(1, 2) for t in tensors)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            row["cudnn_ms"] = gpu.steady_ms(
                lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
                seconds)
    row["ms"] = [first, gpu.steady_ms(ours, seconds)]
    mean = sum(row["ms"]) / 2
    useful = 2 * p["batch"] * p["heads"] * math.prod(p["shape"]) * math.prod(p["kernel_size"]) * (
        p["head_dim"] + p.get("head_dim_value", p["head_dim"]))
    row["useful_tflops"] = useful / mean / 1e9  # without what causality hides
    for peer in ("natten", "cudnn"):
        if peer + "_ms" in row:
            row["times_" + peer] = row[peer + "_ms"] / mean
    return row


def print_row(row):
    mean = sum(row["ms"]) / 2
    text = f"{row['name']:22s} {mean:9.4f} ms {row['useful_tflops']:5.0f} useful TFLOP/s"
    for peer in ("natten", "cudnn"):
        if peer + "_ms" in row:
            text += f"  {peer} {row[peer + '_ms']:9.4f} ms {row['times_' + peer]:5.2f}x"
    kernel = row["plan"]["details"]["kernels"][0]
    if "predicted_ms" in kernel:
        text += f"  predicted {kernel['predicted_ms'] * kernel.get('launches', 1):.4f}"
    print(text, flush=True)


def main():
    parser = gpu.parser_of(__doc__, seconds=0.5)
    parser.add_argument("--library", required=True, help="libvecina.so")
    options = parser.parse_args()
    library = gpu.Library(options.library)
    result = {**gpu.conditions(), "rows": []}
    for p in PROBLEMS:
        if options.names and p["name"] not in options.names:
            continue
        try:
            row = measure(library, options.natten, p, options.seconds)
        except RuntimeError as failure:
            print(f"{p['name']:22s} failed: {failure}", flush=True)
            continue
        print_row(row)
        result["rows"].append(row)
        torch.cuda.empty_cache()
        gpu.write(options.json, result)


if __name__ == "__main__":
    main()
