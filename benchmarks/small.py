#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times small problems on a GPU: the seed's rows, and small windows at real sizes beside NATTEN.

    python benchmarks/small.py --library build/libvecina.so [--natten LIBRARY] [NAME...]

Needs PyTorch with CUDA. --library may be given more than once, as LABEL=PATH: the libraries take
turns on the same tensors. LIBRARY is that of hopper.py; VECINA_CUDA_TARGET=80 asks for kernels
without Hopper's instructions.

The seed's rows: graphs of 20 dependent calls, each waiting for the whole of the one before (plain)
or, as on a stream, with programmatic dependent launches (chained). Five replays back to back,
which follow one that is not timed, are timed 31 times with the tensors in each of --placements
places: medians of each place, of which the best and the median are printed. All graphs have one
stream: a process that has used some more (--streams 12) waits longer for each launch. With
--backward their backward, by itself.

Windows at real sizes: as hopper.py measures, NATTEN with its permutations of all that is read and
written, but for lse.
"""
import ctypes
import json
import math
import os
import statistics
from concurrent.futures import ThreadPoolExecutor

import torch

import gpu
import hopper

CALLS, REPLAYS, TIMES = 20, 5, 31
ROWS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli", "bench_rows.json")
GOALS_US = {
    "baseline_1d_L256_K7": 2.1, "gqa4_1d_L256_K7": 2.1, "mqa_1d_L256_K7": 2.1,
    "addkv1_1d_L256_K7": 2.3, "addkv4_1d_L256_K7": 2.3, "addkv1_gqa4_1d_L256_K7": 2.3,
    "baseline_2d_32x32_K7": 5.2, "gqa4_2d_32x32_K7": 5.2, "mqa_2d_32x32_K7": 5.2,
    "addkv1_2d_32x32_K7": 5.8, "bf16_2d_32x32_K7": 3.1, "fmha_1d_L16_Kfull": 1.9,
    "fmha_1d_L64_Kfull": 2.6, "fmha_2d_8x8_Kfull": 2.4, "fmha_2d_16x16_Kfull": 3.8,
}  # fmt: skip
MERGES = {"merge2_1d_L256": "lse_1d_L256_K7", "merge2_2d_32x32": "lse_2d_32x32_K7"}
MERGE_US = 1.6  # beside two attentions with lse
WINDOWS = [
    hopper.problem("2d-56x56-k7", (56, 56), (7, 7), 4, 32, batch=64),
    hopper.problem("2d-28x28-k7", (28, 28), (7, 7), 8, 32, batch=64),
    hopper.problem("3d-16x32x32-k5", (16, 32, 32), (5, 5, 5), 8, 128, batch=2),
]


class BackwardArgs(ctypes.Structure):  # vecina_backward_args
    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, gpu.Tensor)
        for name in ("query", "key", "value", "additional_key", "additional_value", "bias",
                     "lengths", "query_lengths", "output", "lse", "grad_output", "grad_lse",
                     "grad_query", "grad_key", "grad_value", "grad_additional_key",
                     "grad_additional_value", "grad_bias")
    ] + [("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t)]  # fmt: skip


class Backward:
    """A planned backward of a planned forward that has run. Gradients begin as NaN."""

    def __init__(self, forward, grad_output):
        library = forward.library
        self.c, self.check = library.c, library.check
        self.gradients = [torch.full_like(t, math.nan) for t in forward.tensors]
        self.kept = (forward, grad_output)
        self.args = BackwardArgs(struct_size=ctypes.sizeof(BackwardArgs))
        names = ("query", "key", "value", "additional_key", "additional_value")
        tensors = {"output": forward.output, "lse": forward.lse, "grad_output": grad_output}
        for name, tensor, gradient in zip(names, forward.tensors, self.gradients):
            tensors |= {name: tensor, f"grad_{name}": gradient}
        for name, tensor in tensors.items():
            setattr(self.args, name, gpu.Tensor.of(tensor))
        self.plan = ctypes.c_void_p()
        self.check(self.c.vecina_plan_backward(library.context, forward.parsed,
                                               ctypes.byref(self.args), ctypes.byref(self.plan)))
        self.c.vecina_plan_workspace_bytes.restype = ctypes.c_size_t
        size = self.c.vecina_plan_workspace_bytes(self.plan)
        self.workspace = torch.empty(size, dtype=torch.uint8, device=grad_output.device)
        self.args.workspace, self.args.workspace_bytes = self.workspace.data_ptr(), size
        self.description = gpu.description_of(library, self.plan)

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(self.c.vecina_run_backward(self.plan, ctypes.byref(self.args), stream))


class KernelNode(ctypes.Structure):  # CUDA_KERNEL_NODE_PARAMS_v2
    _fields_ = [("function", ctypes.c_void_p), ("grid", ctypes.c_uint * 3),
                ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint),
                ("params", ctypes.c_void_p), ("extra", ctypes.c_void_p),
                ("kernel", ctypes.c_void_p), ("context", ctypes.c_void_p)]  # fmt: skip


class Driver:
    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name, *args):
        result = getattr(self.c, name)(*args)
        if result != 0:
            raise RuntimeError(f"{name} failed: error {result}")


class Graph:
    """Calls captured on a stream, as they are (chained) or each after the end of the one before."""

    def __init__(self, driver, call, count, is_chained, stream):
        self.driver = driver
        self.stream = stream
        with torch.cuda.stream(self.stream):
            call()
        torch.cuda.synchronize()
        captured = ctypes.c_void_p()
        handle = ctypes.c_void_p(self.stream.cuda_stream)
        thread_local = 1
        driver("cuStreamBeginCapture_v2", handle, ctypes.c_int(thread_local))
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                call()
        driver("cuStreamEndCapture", handle, ctypes.byref(captured))
        graph = captured if is_chained else self.plain(captured)
        self.exec = ctypes.c_void_p()
        driver("cuGraphInstantiateWithFlags", ctypes.byref(self.exec), graph,
               ctypes.c_ulonglong(0))
        self.kept = (captured, graph)

    def plain(self, captured):
        count = ctypes.c_size_t(0)
        self.driver("cuGraphGetNodes", captured, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * count.value)()
        self.driver("cuGraphGetNodes", captured, nodes, ctypes.byref(count))
        graph, last = ctypes.c_void_p(), None
        self.driver("cuGraphCreate", ctypes.byref(graph), ctypes.c_uint(0))
        for node in nodes:  # in the order of the calls
            params, added = KernelNode(), ctypes.c_void_p()
            self.driver("cuGraphKernelNodeGetParams_v2", ctypes.c_void_p(node),
                        ctypes.byref(params))
            self.driver("cuGraphAddKernelNode_v2", ctypes.byref(added), graph,
                        None if last is None else ctypes.byref(last),
                        ctypes.c_size_t(0 if last is None else 1), ctypes.byref(params))
            last = added
        return graph

    def replay_us(self):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        handle = ctypes.c_void_p(self.stream.cuda_stream)
        for replay in range(1 + REPLAYS):
            if replay == 1:  # the GPU is busy: the host's own time does not count
                begin.record(self.stream)
            self.driver("cuGraphLaunch", self.exec, handle)
        end.record(self.stream)
        end.synchronize()
        return begin.elapsed_time(end) * 1000 / REPLAYS


def row_tensors(row, gap):
    """Of one of the seed's rows; gap: bytes of memory that lie before them."""
    kept = torch.empty(gap, dtype=torch.uint8, device="cuda") if gap else None
    words = row["problem"].split()
    get = lambda name, other: int(words[words.index(name) + 1]) if name in words else other
    shape = [int(n) for n in words[1].split("x")]
    heads, head_dim = get("heads", 1), get("head_dim", 1)
    heads_kv, tokens = get("heads_kv", heads), get("additional", 0)
    dtype = torch.bfloat16 if "bf16" in words else torch.float32
    draw = lambda *sizes: torch.randn(get("batch", 1), *sizes, head_dim, device="cuda", dtype=dtype)
    tensors = [draw(*shape, heads), draw(*shape, heads_kv), draw(*shape, heads_kv)]
    if tokens:
        tensors += [draw(tokens, heads_kv), draw(tokens, heads_kv)]
    return kept, tensors


class Merge:
    """Two attentions with lse and their merge."""

    def __init__(self, library, line, tensors):
        self.library = library
        self.parts = [gpu.Vecina(library, line, tensors) for _ in range(2)]
        self.output = torch.full_like(self.parts[0].output, math.nan)
        self.lse = torch.full_like(self.parts[0].lse, math.nan)
        of = lambda name: (gpu.Tensor * 2)(*(gpu.Tensor.of(getattr(part, name))
                                                for part in self.parts))
        self.args = (of("output"), of("lse"), ctypes.byref(gpu.Tensor.of(self.output)),
                     ctypes.byref(gpu.Tensor.of(self.lse)))

    def __call__(self):
        for part in self.parts:
            part()
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.library.check(self.library.c.vecina_merge_attentions(
            self.library.context, 2, *self.args, stream))


def compile_ahead(plans):
    """Makes plans, which compile their kernels, all at the same time."""
    with ThreadPoolExecutor() as pool:
        for plan in [pool.submit(plan) for plan in plans]:
            plan.result()
    torch.cuda.synchronize()


def seed_rows():
    with open(ROWS, encoding="utf-8") as file:
        return json.load(file)["rows"]


def use_streams(count):
    streams = [torch.cuda.Stream() for _ in range(count)]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    return streams


def backward_of(library, line, tensors):
    forward = gpu.Vecina(library, line, tensors)
    forward()
    return Backward(forward, torch.randn_like(forward.output))


def measure_rows(libraries, driver, names, placements, is_backward):
    rows = [row for row in seed_rows() if not names or row["name"] in names]
    if is_backward:  # one row of each problem
        rows = [row for row in rows if row["kind"] == "output"]
    make = backward_of if is_backward else gpu.Vecina
    compile_ahead(
        [lambda row=row, library=library: make(library, row["problem"], row_tensors(row, 0)[1])
         for row in rows for library in libraries.values()])  # fmt: skip
    found, alive, stream = [], [], torch.cuda.Stream()
    for row in rows:
        result = {"name": row["name"], "problem": row["problem"],
                  "us": {label: {"plain": [], "chained": []} for label in libraries}}
        for place in range(placements):
            torch.manual_seed(place)
            kept, tensors = row_tensors(row, 1536 * place * place)
            alive.append((kept, tensors))  # so that the next ones lie elsewhere
            graphs = []
            for label, library in libraries.items():
                if is_backward:
                    call = backward_of(library, row["problem"], tensors)
                    kernels = call.description["details"]["kernels"]
                    result.setdefault("kernels", {})[label] = [k["kernel"] for k in kernels]
                elif row["kind"] == "merge":
                    call = Merge(library, row["problem"], tensors)
                else:
                    call = gpu.Vecina(library, row["problem"], tensors,
                                         has_lse=row["kind"] == "with_lse")
                for kind in ("plain", "chained"):
                    graph = Graph(driver, call, CALLS, kind == "chained", stream)
                    graphs.append((result["us"][label][kind], graph, [], call))
            for time in range(-3, TIMES):
                for _, graph, times, _ in graphs:
                    us = graph.replay_us() / CALLS
                    if time >= 0:
                        times.append(us)
            for medians, _, times, _ in graphs:
                medians.append(statistics.median(times))
        found.append(result)
        print_seed_row(result, [] if is_backward else found)
    return found


def print_seed_row(result, found):
    name = result["name"]
    for label, us in result["us"].items():
        goal = GOALS_US.get(name) if found else None
        with_lse = [r for r in found if r["name"] == MERGES.get(name)]
        if with_lse:
            goal = 2 * statistics.median(with_lse[0]["us"][label]["plain"]) + MERGE_US
        text = "  ".join(f"{kind} {statistics.median(times):6.3f} (best {min(times):6.3f})"
                         for kind, times in us.items())
        goal_text = f"goal {goal or math.nan:.2f}" if found else result["kernels"][label]
        print(f"{name:24s} {label:12s} {text}  {goal_text}", flush=True)


def measure_windows(libraries, natten, names, seconds):
    found = []
    steady_ms = lambda call: gpu.steady_ms(call, seconds)
    for p in WINDOWS:
        if names and p["name"] not in names:
            continue
        tensors = hopper.inputs(p)
        grad_output = torch.randn_like(tensors[0])
        plan = lambda library: gpu.Vecina(library, hopper.line(p), tensors)
        compile_ahead([lambda library=library: Backward(plan(library), grad_output)
                       for library in libraries.values()])  # fmt: skip
        forwards = {label: plan(library) for label, library in libraries.items()}
        for forward in forwards.values():
            forward()
        backwards = {label: Backward(forward, grad_output) for label, forward in forwards.items()}
        row = {"name": p["name"], "problem": hopper.line(p), "forward": {}, "backward": {}}
        theirs = hopper.natten_call(natten, p, tensors) if natten else None
        peers = {}
        if theirs:
            theirs()
            peers = {"forward": theirs, "backward": natten.backward(theirs, grad_output)}
        for kind, ours in (("forward", forwards), ("backward", backwards)):
            for label, call in ours.items():
                call()
                torch.cuda.synchronize()
                row[kind][label] = {"plan": call.description, "ms": [steady_ms(call)]}
            peer = peers.get(kind)
            if peer:
                peer()
                row[kind]["natten"] = {"ms": [steady_ms(peer)]}
                row[kind]["natten_kernel"] = {"ms": [steady_ms(peer.attend)]}
            for label, call in ours.items():
                row[kind][label]["ms"].append(steady_ms(call))
                if not peer:
                    continue
                pairs = (zip(call.gradients, peer.gradients) if kind == "backward" else
                         [(call.output, peer.output)])
                row[kind][label]["relative_difference"] = [gpu.error(*p) for p in pairs]
            print_window(row, kind)
        found.append(row)
        torch.cuda.empty_cache()
    return found


def print_window(row, kind):
    theirs = row[kind].get("natten")
    for label, side in row[kind].items():
        mean = statistics.mean(side["ms"])
        times = f"natten {theirs['ms'][0] / mean:5.2f}x" if theirs else ""
        plan = side.get("plan", {"details": {"kernels": []}})
        kernels = [k["kernel"] for k in plan["details"]["kernels"]]
        differences = [f"{d:.1e}" for d in side.get("relative_difference", [])]
        print(f"{row['name']:16s} {kind:8s} {label:14s} {mean:8.4f} ms {times} {kernels} "
              f"{differences}", flush=True)


def main():
    parser = gpu.parser_of(__doc__, seconds=0.3)
    parser.add_argument("--library", required=True, action="append", metavar="[LABEL=]PATH",
                        help="libvecina.so; more than one take turns")
    parser.add_argument("--placements", type=int, default=5, help="of the tensors of seed's rows")
    parser.add_argument("--streams", type=int, default=0,
                        help="others that the process has used before the seed's rows")
    parser.add_argument("--backward", action="store_true", help="of the seed's rows, nothing else")
    options = parser.parse_args()
    unknown = set(options.names) - {row["name"] for row in [*seed_rows(), *WINDOWS]}
    if unknown:
        parser.error(f"no row is named {', '.join(sorted(unknown))}")
    libraries = {}
    for given in options.library:
        label, _, path = given.rpartition("=")
        libraries[label or "vecina"] = gpu.Library(path)
    torch.cuda.init()
    kept = use_streams(options.streams)
    result = gpu.conditions() | {"streams": len(kept)}
    result["rows"] = measure_rows(libraries, Driver(), options.names, options.placements,
                                  options.backward)
    if not options.backward:
        result["windows"] = measure_windows(libraries, options.natten, options.names,
                                            options.seconds)
    gpu.write(options.json, result)


if __name__ == "__main__":
    main()
