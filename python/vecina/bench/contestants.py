# SPDX-License-Identifier: MIT
"""Who can be compared: vecina's backends, and other libraries where they are installed.

``find(name)`` gives a function that makes of a row and its inputs a call without arguments. Masks
and the like are made before the call; what a user has to do in each call is in it. Who cannot run
a row raises Unavailable with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import vecina
import vecina.torch as vt
from vecina import _torch_split, _windows
from vecina.bench.rows import Row


class Unavailable(Exception):
    """Why somebody cannot run, in a sentence."""


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    additional_keys: Tensor | None
    additional_values: Tensor | None

    def on(self, device: str) -> Inputs:
        return Inputs(*(None if tensor is None else tensor.to(device) for tensor in self))


def draw(row: Row, device: str = "cpu") -> Inputs:
    """Random inputs of a row, the same for everybody."""
    generator = torch.Generator().manual_seed(1)
    batch, heads, dim = (row.number(w, 1) for w in ("batch", "heads", "head_dim"))
    heads_kv, more = row.number("heads_kv", heads), row.number("additional", 0)

    def tensor(*shape):
        return torch.randn(shape, generator=generator).to(device, getattr(torch, row.dtype))

    query = tensor(batch, *row.tokens, heads, dim)
    key, value = (tensor(batch, *row.tokens, heads_kv, dim) for _ in range(2))
    extra = [tensor(batch, more, heads_kv, dim) if more else None for _ in range(2)]
    return Inputs(query, key, value, *extra)


def _waiting(call: Callable, device: str) -> Callable:
    """call, until the device has done it."""
    if device == "cpu":
        return call
    wait = getattr(torch, device).synchronize

    def synchronized():
        result = call()
        wait()
        return result

    return synchronized


def _with_merge(row: Row, attend: Callable, merge: Callable) -> Callable:
    if row.kind != "merge":
        return lambda: attend(row.kind == "with_lse")

    def chain():
        parts = [attend(True), attend(True)]
        return merge([part[0] for part in parts], [part[1] for part in parts])

    return chain


def _window(row: Row) -> int:
    return row.number("kernel_size", 0)


def _vecina(backend: str) -> Callable:
    def make(row: Row, inputs: Inputs) -> Callable:
        function = getattr(vt, f"na{len(row.tokens)}d")
        extra = dict(
            additional_keys=inputs.additional_keys, additional_values=inputs.additional_values
        )

        def attend(return_lse: bool):
            return function(
                *inputs[:3], _window(row), **extra, return_lse=return_lse, backend=backend
            )

        def merge(outputs, lses):
            return vt.merge_attentions(outputs, lses, backend=backend)

        return _with_merge(row, attend, merge)

    return make


def _mask(row: Row) -> Tensor:
    """[tokens, tokens + additional]: True where a query sees a key."""
    axes = _windows.axes_of(row.tokens, _window(row), 1, 1, False, 1)
    index = _torch_split._make_tables(axes, False, "cpu").index
    mask = torch.zeros(len(index), len(index), dtype=torch.bool).scatter_(1, index, True)
    more = mask.new_ones(len(index), row.number("additional", 0))
    return torch.cat((mask, more), 1)


def _flat(tensor: Tensor, additional: Tensor | None = None) -> Tensor:
    """[batch, heads, tokens, head_dim] of what is heads last; a view without additional tokens."""
    tensor = tensor.flatten(1, -3)
    if additional is not None:
        tensor = torch.cat((tensor, additional), 1)
    return tensor.transpose(1, 2)


def _sdpa(row: Row, inputs: Inputs) -> Callable:
    if row.kind != "output":
        raise Unavailable("torch's scaled_dot_product_attention gives no lse.")
    mask = None if row.is_dense else _mask(row).to(inputs.query.device)
    grouped = inputs.query.shape[-2] != inputs.key.shape[-2]
    query, key, value, keys, values = inputs

    def call():
        output = torch.nn.functional.scaled_dot_product_attention(
            _flat(query), _flat(key, keys), _flat(value, values), attn_mask=mask,
            enable_gqa=grouped,
        )  # fmt: skip
        return output.transpose(1, 2).reshape(query.shape)

    return call


def _flex(row: Row, inputs: Inputs) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value, keys, values = inputs
    if row.kind != "output" and query.device.type == "cpu":
        raise Unavailable("FlexAttention gives no lse on the CPU (torch 2.11).")
    if row.kind == "merge":
        raise Unavailable("FlexAttention has no merge.")
    has_lse = row.kind == "with_lse"
    block_mask = None
    if not row.is_dense:
        mask = _mask(row).to(query.device)
        block_mask = create_block_mask(
            lambda b, h, i, j: mask[i, j], None, None, *mask.shape, device=query.device
        )
    torch._dynamo.reset()  # after eight shapes it would go on without compiling
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = query.shape[-2] != key.shape[-2]

    def shaped(output):
        return output.transpose(1, 2).reshape(query.shape)

    def call():
        output = compiled(
            _flat(query), _flat(key, keys), _flat(value, values), block_mask=block_mask,
            enable_gqa=grouped, return_lse=has_lse,
        )  # fmt: skip
        if has_lse:
            output, lse = output
            return shaped(output), lse.transpose(1, 2).reshape(query.shape[:-1])
        return shaped(output)

    return call


def _package(name: str):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} cannot be imported here: {error}.") from error
    if getattr(module, "na1d").__module__.startswith("vecina"):
        raise Unavailable(f"{name} is vecina.compat's here, not the package of this name.")
    return module


def _natten(row: Row, inputs: Inputs) -> Callable:
    natten = _package("natten")
    function = getattr(natten, f"na{len(row.tokens)}d")

    def attend(return_lse: bool):
        return function(
            *inputs[:3], _window(row), additional_keys=inputs.additional_keys,
            additional_values=inputs.additional_values, return_lse=return_lse,
        )  # fmt: skip

    return _with_merge(row, attend, lambda *parts: natten.merge_attentions(*parts, False))


def _refuse_cuda(name: str, inputs: Inputs) -> None:
    if inputs.query.device.type == "cuda":
        raise Unavailable(f"{name} does not run on CUDA tensors.")


def _backend_of(natten_mps) -> tuple[str, str]:
    """(its backend, the device of its tensors): Metal where it is, on a Mac."""
    return ("metal", "mps") if natten_mps.has_metal() else ("pure", "cpu")


def _natten_mps(row: Row, inputs: Inputs) -> Callable:
    _refuse_cuda("natten-mps", inputs)
    natten_mps = _package("natten_mps")
    backend, device = _backend_of(natten_mps)
    natten_mps.set_backend(backend)
    inputs = inputs.on(device)
    function = getattr(natten_mps, f"na{len(row.tokens)}d")

    def attend(return_lse: bool):
        return function(
            *inputs[:3], _window(row), return_lse=return_lse,
            additional_keys=inputs.additional_keys, additional_values=inputs.additional_values,
        )  # fmt: skip

    call = _with_merge(row, attend, lambda *parts: natten_mps.merge_attentions(*parts, False))
    return _waiting(call, device)


def _natten_mlx(row: Row, inputs: Inputs) -> Callable:
    _refuse_cuda("natten-mlx", inputs)
    natten_mlx = _package("natten_mlx")
    import mlx.core as mx

    def array(tensor):
        if tensor is None:
            return None
        return mx.array(tensor.float().numpy()).astype(getattr(mx, row.dtype))

    query, key, value, keys, values = map(array, inputs)
    function = getattr(natten_mlx, f"na{len(row.tokens)}d")

    def attend(return_lse: bool):
        return function(
            query, key, value, _window(row), return_lse=return_lse, additional_keys=keys,
            additional_values=values,
        )  # fmt: skip

    call = _with_merge(row, attend, natten_mlx.merge_attentions)

    def evaluated():
        result = call()
        mx.eval(result)
        return result

    return evaluated


_OTHERS = {
    "sdpa": _sdpa, "flex": _flex, "natten": _natten, "natten-mps": _natten_mps,
    "natten-mlx": _natten_mlx,
}  # fmt: skip


def names() -> list[str]:
    """vecina's backends that are usable here, then the other libraries, installed or not."""
    return [b for b in vecina.backends() if not vecina.why_not(b)] + list(_OTHERS)


def find(name: str) -> Callable[[Row, Inputs], Callable]:
    """ValueError if nobody has this name."""
    if name in _OTHERS:
        return _OTHERS[name]
    if name not in names():
        raise ValueError(f"'{name}' is none of {', '.join(names())}.")
    return _vecina(name)
