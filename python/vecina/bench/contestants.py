# SPDX-License-Identifier: MIT
"""Who can be compared: vecina's backends, and other libraries where they are installed.

``find(name)`` gives a function that makes of a row and its inputs a call without arguments. Masks
and the like are made before the call; what a user has to do in each call is in it. Who cannot run
a row raises Unavailable with the reason. What a reader has to know about a call is its ``note``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import vecina
import vecina.torch as vt
from vecina import _torch_split, _windows
from vecina.bench.rows import Row

_LARGEST_MASK = 1 << 30  # numbers


class Unavailable(Exception):
    """Why somebody cannot run, in a sentence."""


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    additional_keys: Tensor | None
    additional_values: Tensor | None
    bias: Tensor | None = None

    def on(self, device: str) -> Inputs:
        return Inputs(*(None if tensor is None else tensor.to(device) for tensor in self))


def draw(row: Row, device: str = "cpu") -> Inputs:
    """Random inputs of a row, the same for everybody."""
    generator = torch.Generator().manual_seed(1)
    batch, heads, dim = (row.number(w, 1) for w in ("batch", "heads", "head_dim"))
    heads_kv, more = row.number("heads_kv", heads), row.number("additional", 0)
    of_key_and_value = dim, row.number("head_dim_value", dim)

    def tensor(*shape, dtype=getattr(torch, row.dtype)):
        return torch.randn(shape, generator=generator).to(device, dtype)

    query = tensor(batch, *row.tokens, heads, dim)
    key, value = (tensor(batch, *row.tokens, heads_kv, n) for n in of_key_and_value)
    extra = [tensor(batch, more, heads_kv, n) if more else None for n in of_key_and_value]
    bias = None
    if row.has_bias:
        window = (2 * axis.kernel_size - 1 for axis in _axes(row))
        dtype = torch.float64 if row.dtype == "float64" else torch.float32
        bias = tensor(heads, *window, dtype=dtype)
    return Inputs(query, key, value, *extra, bias)


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


def _window(row: Row) -> dict:
    """What describes the window, by the names that all of them have; what is usual is left out."""
    window = {"kernel_size": row.axes("kernel_size", 0)}
    for name in ("stride", "dilation"):
        if row.axes(name, 1) != 1:
            window[name] = row.axes(name, 1)
    if row.is_causal:
        window["is_causal"] = row.is_causal
    return window


def _axes(row: Row) -> tuple[_windows.Axis, ...]:
    window = {"stride": 1, "dilation": 1, "is_causal": False, **_window(row)}
    return _windows.axes_of(row.tokens, **window, output_stride=1)


def _vecina(backend: str) -> Callable:
    def make(row: Row, inputs: Inputs) -> Callable:
        function = getattr(vt, f"na{len(row.tokens)}d")
        window, extra = _window(row), inputs._asdict()
        tensors = [extra.pop(name) for name in ("query", "key", "value")]

        def attend(return_lse: bool):
            return function(*tensors, **window, **extra, return_lse=return_lse, backend=backend)

        def merge(outputs, lses):
            return vt.merge_attentions(outputs, lses, backend=backend)

        return _with_merge(row, attend, merge)

    return make


def _tables(row: Row) -> tuple[Tensor, Tensor]:
    """Keys of every query, and their elements of a head's bias; empty slots repeat the first."""
    tables = _torch_split._make_tables(_axes(row), False, "cpu")
    return tuple(t.where(tables.seen, t[:, :1]) for t in (tables.index, tables.bias))


def _table(row: Row, fill, dtype: torch.dtype, heads: int | None = None) -> Tensor:
    """[tokens, tokens + additional], or as much for each head, of one number."""
    tokens = math.prod(row.tokens)
    shape = (tokens, tokens + row.number("additional", 0))
    shape = shape if heads is None else (heads, *shape)
    if math.prod(shape) > _LARGEST_MASK:
        text = " x ".join(map(str, shape))
        raise Unavailable(f"a mask of {text} numbers is not made; {_LARGEST_MASK} are the most.")
    return torch.full(shape, fill, dtype=dtype)


def _mask(row: Row) -> Tensor:
    """[tokens, tokens + additional]: True where a query sees a key."""
    mask = _table(row, False, torch.bool)
    mask[:, len(mask) :] = True
    return mask.scatter_(1, _tables(row)[0], True)


def _mask_of_bias(row: Row, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """[heads, tokens, tokens + additional]: the bias where a query sees a key, else -inf."""
    mask = _table(row, -math.inf, dtype, len(bias))
    mask[..., mask.shape[1] :] = 0
    index, element = _tables(row)
    values = bias.cpu().to(dtype).flatten(1)[:, element]
    return mask.scatter_(2, index.expand_as(values), values)


def _flat(tensor: Tensor, additional: Tensor | None = None) -> Tensor:
    """[batch, heads, tokens, head_dim] of what is heads last; a view without additional tokens."""
    tensor = tensor.flatten(1, -3)
    if additional is not None:
        tensor = torch.cat((tensor, additional), 1)
    return tensor.transpose(1, 2)


def _sdpa(row: Row, inputs: Inputs) -> Callable:
    if row.kind != "output":
        raise Unavailable("torch's scaled_dot_product_attention gives no lse.")
    query, key, value, keys, values, bias = inputs
    is_causal = row.is_full and row.is_causal is True and len(row.tokens) == 1
    is_causal = is_causal and keys is None and bias is None
    mask = None
    if bias is not None:
        mask = _mask_of_bias(row, bias, query.dtype).to(query.device)
    elif not row.is_dense and not is_causal:
        mask = _mask(row).to(query.device)
    grouped = query.shape[-2] != key.shape[-2]
    shape = (*query.shape[:-1], value.shape[-1])

    def call():
        output = torch.nn.functional.scaled_dot_product_attention(
            _flat(query), _flat(key, keys), _flat(value, values), attn_mask=mask,
            is_causal=is_causal, enable_gqa=grouped,
        )  # fmt: skip
        return output.transpose(1, 2).reshape(shape)

    return call


def _score_mod(row: Row, bias: Tensor) -> Callable:
    """Adds the bias to the logit of a pair."""
    index, element = _tables(row)
    count = bias[0].numel()  # of what follows the bias, a zero: of additional tokens
    elements = _table(row, count, torch.int32).scatter_(1, index, element.int()).to(bias.device)
    padded = torch.nn.functional.pad(bias.flatten(1), (0, 1))

    def score_mod(score, batch, head, query, key):
        return score + padded[head, elements[query, key]]

    return score_mod


def _flex(row: Row, inputs: Inputs) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value, keys, values, bias = inputs
    if row.kind != "output" and query.device.type == "cpu":
        raise Unavailable("FlexAttention gives no lse on the CPU (torch 2.11).")
    if row.kind == "merge":
        raise Unavailable("FlexAttention has no merge.")
    has_lse = row.kind == "with_lse"
    score_mod = None if bias is None else _score_mod(row, bias)
    block_mask = None
    if not row.is_dense:
        mask = _mask(row).to(query.device)
        block_mask = create_block_mask(
            lambda b, h, i, j: mask[i, j], None, None, *mask.shape, device=query.device
        )
    torch._dynamo.reset()  # after eight shapes it would go on without compiling
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = query.shape[-2] != key.shape[-2]

    shape = (*query.shape[:-1], value.shape[-1])

    def shaped(output):
        return output.transpose(1, 2).reshape(shape)

    def call():
        output = compiled(
            _flat(query), _flat(key, keys), _flat(value, values), score_mod=score_mod,
            block_mask=block_mask, enable_gqa=grouped, return_lse=has_lse,
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


def _refuse_bias(name: str, inputs: Inputs) -> None:
    if inputs.bias is not None:
        raise Unavailable(f"{name} has no bias.")


def _natten(row: Row, inputs: Inputs) -> Callable:
    natten = _package("natten")
    _refuse_bias("natten", inputs)
    function, window = getattr(natten, f"na{len(row.tokens)}d"), _window(row)

    def attend(return_lse: bool):
        return function(
            *inputs[:3], **window, additional_keys=inputs.additional_keys,
            additional_values=inputs.additional_values, return_lse=return_lse,
        )  # fmt: skip

    return _with_merge(row, attend, lambda *parts: natten.merge_attentions(*parts, False))


def _refuse_cuda(name: str, inputs: Inputs) -> None:
    if inputs.query.device.type == "cuda":
        raise Unavailable(f"{name} does not run on CUDA tensors.")


def _refuse_stride(name: str, row: Row) -> None:
    if "stride" in _window(row):
        raise Unavailable(f"{name} has another stride: of the queries.")


def _backend_of(natten_mps) -> tuple[str, str]:
    """(its backend, the device of its tensors): Metal where it is, on a Mac."""
    return ("metal", "mps") if natten_mps.has_metal() else ("pure", "cpu")


def _natten_mps(row: Row, inputs: Inputs) -> Callable:
    _refuse_cuda("natten-mps", inputs)
    natten_mps = _package("natten_mps")
    _refuse_stride("natten-mps", row)
    backend, device = _backend_of(natten_mps)
    natten_mps.set_backend(backend)
    inputs = inputs.on(device)
    if inputs.bias is not None:
        return _waiting(_natten_mps_with_bias(row, inputs), device)
    function, window = getattr(natten_mps, f"na{len(row.tokens)}d"), _window(row)

    def attend(return_lse: bool):
        return function(
            *inputs[:3], **window, return_lse=return_lse,
            additional_keys=inputs.additional_keys, additional_values=inputs.additional_values,
        )  # fmt: skip

    call = _with_merge(row, attend, lambda *parts: natten_mps.merge_attentions(*parts, False))
    return _waiting(call, device)


def _natten_mps_with_bias(row: Row, inputs: Inputs) -> Callable:
    rank, window = len(row.tokens), _window(row)
    query, key, value, keys, _, bias = inputs
    grouped = query.shape[-2] != key.shape[-2]
    if rank == 3 or grouped or keys is not None or row.kind != "output" or "is_causal" in window:
        raise Unavailable(
            "natten-mps' functions with a bias are of one or two axes, none of them causal, take "
            "neither fewer heads of keys nor additional tokens, and give no lse."
        )
    # Its other ones, of extras.allin1, take four times as long on the CPU (0.3.3).
    module = importlib.import_module("natten_mps.compat.v014")
    qk, av = (getattr(module, f"natten{rank}d{name}") for name in ("qkrpb", "av"))
    of_call = window["kernel_size"], window.get("dilation", 1)
    scale = query.shape[-1] ** -0.5
    bias = bias.to(query.dtype)

    def call():
        query, key, value = (t.movedim(-2, 1) for t in inputs[:3])  # it takes heads first
        weights = torch.softmax(qk(query * scale, key, bias, *of_call), -1)
        return av(weights, value, *of_call).movedim(1, -2)

    call.note = f"with a bias: compat.v014's natten{rank}dqkrpb, torch.softmax, natten{rank}dav"
    return call


def _natten_mlx(row: Row, inputs: Inputs) -> Callable:
    _refuse_cuda("natten-mlx", inputs)
    natten_mlx = _package("natten_mlx")
    _refuse_bias("natten-mlx", inputs)
    _refuse_stride("natten-mlx", row)
    if row.dtype == "float64":
        raise Unavailable("natten-mlx: MLX has no float64 on its GPU.")
    import mlx.core as mx

    def array(tensor):
        if tensor is None:
            return None
        return mx.array(tensor.float().numpy()).astype(getattr(mx, row.dtype))

    query, key, value, keys, values, _ = map(array, inputs)
    function, window = getattr(natten_mlx, f"na{len(row.tokens)}d"), _window(row)

    def attend(return_lse: bool):
        return function(
            query, key, value, **window, return_lse=return_lse, additional_keys=keys,
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


def is_other(name: str) -> bool:
    """True of another library than vecina."""
    return name in _OTHERS


def find(name: str) -> Callable[[Row, Inputs], Callable]:
    """ValueError if nobody has this name."""
    if name in _OTHERS:
        return _OTHERS[name]
    if name not in names():
        raise ValueError(f"'{name}' is none of {', '.join(names())}.")
    return _vecina(name)
