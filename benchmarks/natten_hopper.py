# SPDX-License-Identifier: MIT
"""NATTEN's Hopper kernels on tensors of PyTorch, end to end: with the copies of tokens into the
order of tiles and back that it makes around each. natten/build.py makes the library.
"""
import ctypes
import math
import os
from dataclasses import dataclass

try:
    import torch
except ImportError:  # natten/build.py reads the list of kernels without it
    torch = None


@dataclass(frozen=True)
class Kernel:
    head_dim: int
    query_tile: tuple
    key_tile: tuple
    schedule: str = ""  # of a forward, as NATTEN calls it

    @property
    def name(self):
        kind = f"forward_{self.schedule}" if self.schedule else "backward"
        return f"{kind}_{len(self.query_tile)}d_{self.head_dim}"


# bf16; what the benchmarks need of NATTEN's default configurations: the first tiles for a rank and
# head_dim, all their schedules.
KERNELS = [
    *(Kernel(128, query_tile, key_tile, schedule)
      for query_tile, key_tile in (((128,), (128,)), ((16, 8), (16, 8)), ((2, 8, 8), (2, 8, 8)))
      for schedule in ("WSCooperative", "WSPingpong")),
    Kernel(64, (64,), (128,), "NonPersistent"),
    Kernel(64, (8, 8), (16, 8), "NonPersistent"),
    Kernel(64, (4, 4, 4), (2, 8, 8), "NonPersistent"),
    Kernel(32, (8, 8), (16, 8), "NonPersistent"),
    Kernel(128, (64,), (128,)),
    Kernel(128, (8, 8), (16, 8)),
    Kernel(128, (2, 4, 8), (2, 8, 8)),
    Kernel(64, (8, 8), (16, 8)),
    Kernel(32, (8, 8), (16, 8)),
]  # fmt: skip

POINTERS = ("query", "key", "value", "output", "lse", "grad_query", "grad_key", "grad_value",
            "grad_output")
Axes = ctypes.c_int32 * 3


class AttentionCall(ctypes.Structure):  # natten/call.h
    _fields_ = ([(name, ctypes.c_void_p) for name in POINTERS] +
                [(name, ctypes.c_int32) for name in ("batch", "heads", "head_dim")] +
                [(name, Axes) for name in ("tokens", "query_tokens", "key_tokens", "kernel_size",
                                           "stride")] +
                [("scale", ctypes.c_float), ("workspace", ctypes.c_void_p),
                 ("stream", ctypes.c_void_p)])  # fmt: skip


class PermuteCall(ctypes.Structure):  # natten/call.h
    _fields_ = ([(name, ctypes.c_void_p) for name in ("from", "to")] +
                [(name, ctypes.c_int32) for name in ("batch", "heads", "columns")] +
                [("tokens", Axes), ("tile", Axes), ("is_inverse", ctypes.c_int32),
                 ("stream", ctypes.c_void_p)])  # fmt: skip


def current_stream():
    return torch.cuda.current_stream().cuda_stream


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(os.path.abspath(path))

    def forwards(self, tensors, kernel_size, stride=None):
        """A Forward for each schedule; none if there is no kernel for the rank and head_dim.

        tensors: query, key and value, [batch, tokens..., heads, head_dim], bf16 and contiguous;
        kernel_size and stride: a number for each axis. ValueError for other tensors.
        """
        for tensor in tensors:
            if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous():
                raise ValueError(f"NATTEN's kernels take contiguous bfloat16, not {tensor.dtype} "
                                 f"with strides {tensor.stride()}; use .bfloat16().contiguous().")
        return [Forward(self, kernel, tensors, kernel_size, stride)
                for kernel in self._kernels(tensors) if kernel.schedule]

    def backward(self, forward, grad_output):
        """Of a Forward that has run; None if there is no kernel for the rank and head_dim.

        grad_output: as the forward's output, bf16 and contiguous.
        """
        kernels = [kernel for kernel in self._kernels(forward.tensors) if not kernel.schedule]
        return Backward(self, kernels[0], forward, grad_output) if kernels else None

    def _kernels(self, tensors):
        rank, head_dim = tensors[0].dim() - 3, tensors[0].shape[-1]
        return [k for k in KERNELS if (len(k.query_tile), k.head_dim) == (rank, head_dim)]


class Copy:
    """Of a tensor's tokens into the order of tiles, or back from it. Tokens of tiles beyond the
    tensor are zeros."""

    def __init__(self, library, source, target, tokens, tile, is_inverse=False):
        self.function = (library.c.permute_f32 if source.element_size() == 4 else
                         library.c.permute_bf16)
        self.kept, self.rank = (source, target), len(tile)
        columns = source.shape[-1] if source.element_size() == 2 else 1  # lse has no columns
        heads = source.shape[-2] if columns > 1 else source.shape[-1]
        self.call = PermuteCall(source.data_ptr(), target.data_ptr(), source.shape[0], heads,
                                columns, Axes(*tokens), Axes(*tile), is_inverse)

    def __call__(self):
        self.call.stream = current_stream()
        if self.function(self.rank, ctypes.byref(self.call)) != 1:
            raise RuntimeError("NATTEN's copy of tokens was not launched")


class Attention:
    """One of the kernels and its copies: `copies` before, `attend`, `returns` after."""

    def __init__(self, library, kernel, tensors, kernel_size, stride):
        self.library, self.kernel, self.tensors = library, kernel, tensors
        self.kernel_size, self.stride = kernel_size, stride
        query = tensors[0]
        self.tokens = tuple(query.shape[1:-2])
        self.copies, self.returns, self.buffers = [], [], {}
        rank = len(self.tokens)
        self.call = AttentionCall(
            batch=query.shape[0], heads=query.shape[-2], head_dim=query.shape[-1],
            tokens=Axes(*self.tokens), query_tokens=Axes(*self._padded(kernel.query_tile)),
            key_tokens=Axes(*self._padded(kernel.key_tile)), kernel_size=Axes(*kernel_size),
            stride=Axes(*(stride or (1,) * rank)), scale=query.shape[-1] ** -0.5)

    def _padded(self, tile):
        return tuple(-(-n // t) * t for n, t in zip(self.tokens, tile))

    def _buffer(self, name, tensor, tile, is_output=False):
        """What the kernel reads or writes for a tensor: itself if its tokens are in the order of
        tiles already, else a copy of it."""
        padded = self._padded(tile)
        if len(tile) > 1 or padded != self.tokens:
            after = tensor.shape[1 + len(self.tokens):]
            buffer = tensor.new_zeros(tensor.shape[0], math.prod(padded), *after)
            pair = (buffer, tensor) if is_output else (tensor, buffer)
            (self.returns if is_output else self.copies).append(
                Copy(self.library, *pair, self.tokens, tile, is_output))
            tensor = buffer
        self.buffers[name] = tensor
        setattr(self.call, name, tensor.data_ptr())
        return tensor

    def _allocate_workspace(self):
        size = getattr(self.library.c, self.kernel.name + "_workspace")
        size.restype = ctypes.c_int64
        self.workspace = self.tensors[0].new_empty(max(size(ctypes.byref(self.call)), 1) // 2 + 1)
        self.call.workspace = self.workspace.data_ptr()

    def attend(self):
        self.call.stream = current_stream()
        status = getattr(self.library.c, self.kernel.name + "_run")(ctypes.byref(self.call))
        if status != 0:
            raise RuntimeError(f"NATTEN's kernel {self.kernel.name} failed: CUDA error {status}")

    def __call__(self):
        for copy in self.copies:
            copy()
        self.attend()
        for copy in self.returns:
            copy()


class Forward(Attention):
    """lse stays in the order of tiles: NATTEN would copy it, too."""

    def __init__(self, library, kernel, tensors, kernel_size, stride):
        super().__init__(library, kernel, tensors, kernel_size, stride)
        query, key, value = tensors
        self.output = query.new_empty(query.shape)
        self._buffer("query", query, kernel.query_tile)
        self._buffer("key", key, kernel.key_tile)
        self._buffer("value", value, kernel.key_tile)
        output = self._buffer("output", self.output, kernel.query_tile, is_output=True)
        self.buffers["lse"] = output.new_empty(
            query.shape[0], math.prod(self._padded(kernel.query_tile)), query.shape[-2],
            dtype=torch.float32)
        self.call.lse = self.buffers["lse"].data_ptr()
        self._allocate_workspace()

    def lse(self):
        """[batch, tokens..., heads], in the given order."""
        query = self.tensors[0]
        result = query.new_empty(query.shape[:-1], dtype=torch.float32)
        Copy(self.library, self.buffers["lse"], result, self.tokens, self.kernel.query_tile, True)()
        return result


class Backward(Attention):
    def __init__(self, library, kernel, forward, grad_output):
        super().__init__(library, kernel, forward.tensors, forward.kernel_size, forward.stride)
        self.gradients = [tensor.new_empty(tensor.shape) for tensor in forward.tensors]
        query, key, value = forward.tensors
        tiles = dict(query=kernel.query_tile, key=kernel.key_tile, value=kernel.key_tile)
        inputs = dict(query=query, key=key, value=value, output=forward.output.clone(),
                      lse=forward.lse(), grad_output=grad_output)
        for name, tensor in inputs.items():
            self._buffer(name, tensor, tiles.get(name, kernel.query_tile))
        for name, tensor in zip(tiles, self.gradients):
            self._buffer("grad_" + name, tensor, tiles[name], is_output=True)
        self._allocate_workspace()
