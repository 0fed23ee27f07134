# SPDX-License-Identifier: MIT
"""What the benchmarks of a GPU share: the library through its C interface on tensors of PyTorch,
steady times, arguments and results.
"""
import argparse
import ctypes
import json
import math
import os

import torch

import natten_hopper

GRAPH_MS = 4.0  # of launches in a graph, where one takes less than SHORT_MS
SHORT_MS = 0.5
DTYPES = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 0}
CUDA_DEVICE = 1


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
        self.c = ctypes.CDLL(os.path.abspath(path))
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


def steady_ms(call, seconds):
    """Of one call: back to back for so long, the second half counted."""
    elapsed_ms(call, 1)
    one = elapsed_ms(call, 3) / 3
    per_replay = 1
    if one < SHORT_MS:
        per_replay = max(1, int(GRAPH_MS / one))
        call = graph_of(call, per_replay)
    half = max(2, int(seconds * 500 / (one * per_replay)))
    elapsed_ms(call, half)
    return elapsed_ms(call, half) / (half * per_replay)


def error(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def parser_of(doc, seconds):
    """Of the arguments that the benchmarks share; seconds: of a measurement, if none are given."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--natten", type=natten_of, metavar="LIBRARY",
                        help="NATTEN's kernels, made by natten/build.py")
    parser.add_argument("--json", help="where to write the raw figures")
    parser.add_argument("--seconds", type=float, default=seconds, help="of a steady measurement")
    parser.add_argument("names", nargs="*", metavar="NAME", help="problems; default: all")
    return parser


def natten_of(path):
    try:
        return natten_hopper.Library(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def conditions():
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "target": os.environ.get("VECINA_CUDA_TARGET", "")}


def write(path, result):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
