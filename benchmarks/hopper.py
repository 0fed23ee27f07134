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
import argparse
import ctypes
import json
import math
import os
import sys

import torch

GRAPH_MS = 4.0  # of launches in a graph, where one takes less than SHORT_MS
SHORT_MS = 0.5
DTYPES = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 0}
CUDA_DEVICE = 1


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


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("byte_offset", ctypes.c_int64),
                ("shape", ctypes.c_int64 * 6), ("strides", ctypes.c_int64 * 6),
                ("ndim", ctypes.c_int32), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32),
                ("device_index", ctypes.c_int32)]

    @classmethod
    def of(cls, tensor):
        n = tensor.dim()
        pad = (0,) * (6 - n)
        return cls(tensor.data_ptr(), 0, (ctypes.c_int64 * 6)(*tensor.shape, *pad),
                   (ctypes.c_int64 * 6)(*tensor.stride(), *pad), n, DTYPES[tensor.dtype],
                   CUDA_DEVICE, tensor.device.index)


class ForwardArgs(ctypes.Structure):  # vecina_forward_args
    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, Tensor) for name in ("query", "key", "value", "additional_key", "additional_value",
                                    "bias", "lengths", "query_lengths", "output", "lse")
    ] + [("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t)]


class Library:
    PROBLEM_BYTES = 240  # of vecina_problem

    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.vecina_last_error.restype = ctypes.c_char_p
        self.c.vecina_plan_describe.restype = ctypes.c_size_t
        self.context = ctypes.c_void_p()
        self.check(self.c.vecina_context_create(None, ctypes.byref(self.context)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.c.vecina_last_error().decode())


def description_of(library, plan):
    text = ctypes.create_string_buffer(16384)
    library.c.vecina_plan_describe(plan, text, ctypes.c_size_t(len(text)))
    return json.loads(text.value)


class Vecina:
    """A planned forward. Outputs begin as NaN, so that what was not written shows."""

    def __init__(self, library, line, tensors, has_lse=True):
        query, key, value, *additional = tensors
        self.library, self.tensors = library, tensors
        self.output = query.new_full((*query.shape[:-1], value.shape[-1]), math.nan)
        self.lse = query.new_full(query.shape[:-1], math.nan, dtype=torch.float32)
        self.args = ForwardArgs(struct_size=ctypes.sizeof(ForwardArgs), query=Tensor.of(query),
                                key=Tensor.of(key), value=Tensor.of(value),
                                output=Tensor.of(self.output))
        if has_lse:
            self.args.lse = Tensor.of(self.lse)
        if additional:
            self.args.additional_key, self.args.additional_value = map(Tensor.of, additional)
        self.parsed = (ctypes.c_char * Library.PROBLEM_BYTES)()
        library.c.vecina_problem_init(self.parsed, ctypes.c_size_t(len(self.parsed)),
                                      query.dim() - 3)
        library.check(library.c.vecina_problem_parse(line.encode(), self.parsed))
        self.plan = ctypes.c_void_p()
        library.check(library.c.vecina_plan_forward(library.context, self.parsed,
                                                    ctypes.byref(self.args),
                                                    ctypes.byref(self.plan)))
        self.description = description_of(library, self.plan)

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.library.check(self.library.c.vecina_run_forward(self.plan, ctypes.byref(self.args),
                                                             stream))


def graph_of(call, count):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph.replay


def elapsed_ms(call, count):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def steady_ms(call, seconds=None):
    """Of one call: back to back for so long, the second half counted."""
    seconds = seconds or options.seconds
    elapsed_ms(call, 1)
    one = elapsed_ms(call, 3) / 3
    per_replay = 1
    if one < SHORT_MS:
        per_replay = max(1, int(GRAPH_MS / one))
        call = graph_of(call, per_replay)
    half = max(2, int(seconds * 500 / (one * per_replay)))
    elapsed_ms(call, half)
    return elapsed_ms(call, half) / (half * per_replay)


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


def error(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def natten_call(natten, p, tensors):
    if any(word in p for word in ("causal", "dilation", "tokens", "head_dim_value", "heads_kv",
                                  "dtype")):
        return None
    try:
        runs = [natten.Problem(*tensors, p["kernel_size"], p["stride"], i) for i in (0, 1)]
    except KeyError:  # not built for this rank and head_dim
        return None
    return min(runs, key=lambda run: steady_ms(run.forward, 0.15))


def measure(library, natten, p):
    tensors = inputs(p)
    ours = Vecina(library, line(p), tensors)
    ours()
    torch.cuda.synchronize()
    assert torch.isfinite(ours.lse).all(), "lse was not written"
    row = {"name": p["name"], "problem": line(p), "plan": ours.description}
    first = steady_ms(ours)
    theirs = natten_call(natten, p, tensors) if natten else None
    if theirs:
        row["natten_ms"] = steady_ms(theirs.forward)
        row["natten_kernel"] = theirs.fwd
        row["relative_difference"] = error(ours.output, theirs.forward()[0])
    if p["name"] == "dense":
        query, key, value = (t.transpose(1, 2) for t in tensors)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            row["cudnn_ms"] = steady_ms(
                lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))
    row["ms"] = [first, steady_ms(ours)]
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


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libvecina.so")
    parser.add_argument("--natten", help="folder of the module natten_hopper")
    parser.add_argument("--json", help="where to write the raw figures")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement")
    parser.add_argument("names", nargs="*", metavar="NAME", help="problems; default: all")
    return parser.parse_args()


def main():
    natten = None
    if options.natten:
        sys.path.insert(0, options.natten)
        import natten_hopper as natten
    library = Library(os.path.abspath(options.library))
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": []}
    for p in PROBLEMS:
        if options.names and p["name"] not in options.names:
            continue
        try:
            row = measure(library, natten, p)
        except RuntimeError as failure:
            print(f"{p['name']:22s} failed: {failure}", flush=True)
            continue
        print_row(row)
        result["rows"].append(row)
        torch.cuda.empty_cache()
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)


if __name__ == "__main__":
    options = parse()
    main()
