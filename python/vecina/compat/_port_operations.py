# SPDX-License-Identifier: MIT
"""The functions of natten-mps and natten-mlx, as ``_operations`` has those of NATTEN."""

from __future__ import annotations

import functools

from vecina._windows import Axis, axis_lists
from vecina.compat import _mlx_backends, _mps_backends, _operations, _port_utils
from vecina.compat._operations import _taken


def _port_window(rank, tokens, kernel_size, stride, dilation, is_causal):
    kernel = _port_utils.normalize_kernel_size(kernel_size, rank)
    stride = _port_utils.normalize_tuple_param(stride, rank, "stride")
    dilation = _port_utils.normalize_tuple_param(dilation, rank, "dilation")
    is_causal = tuple(map(bool, _port_utils.normalize_tuple_param(is_causal, rank, "is_causal")))
    _port_utils.check_kernel_size_vs_input(kernel, tokens)
    _port_utils.check_dilation_kernel_vs_input(dilation, kernel, tokens)
    return kernel, stride, dilation, is_causal


def _check_rank(rank, *tensors) -> None:
    if any(tensor.ndim != rank + 3 for tensor in tensors):
        raise ValueError(f"na{rank}d takes {rank + 3} dimensions: batch, tokens, heads, head_dim.")


def _check_port(query, key, value, additional_keys, additional_values) -> None:
    # In the words that the ports' users look for; vecina would refuse the same.
    tokens = [tuple(t.shape[1:-2]) for t in (query, key, value)]
    if len(set(tokens)) != 1:
        raise ValueError(f"Spatial dimensions must match; query, key and value have {tokens}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"Head dim of query is {query.shape[-1]}, of key {key.shape[-1]}.")
    if key.shape[-2] != value.shape[-2] or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"heads {query.shape[-2]} of query must be divisible by those of key "
            f"{key.shape[-2]}, which value has too ({value.shape[-2]})."
        )
    if (additional_keys is None) != (additional_values is None):
        raise ValueError("additional_keys and additional_values must both be provided, or neither.")
    for name, more in (("keys", additional_keys), ("values", additional_values)):
        if more is None:
            continue
        if more.ndim != 4:
            raise ValueError(f"additional_{name} must be 4D: [batch, tokens, heads, head dim].")
        if more.shape[0] != query.shape[0]:
            raise ValueError(f"additional_{name} have batch {more.shape[0]}, not {query.shape[0]}.")
        if name == "keys" and more.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"additional_{name} have head dim {more.shape[-1]}, not {query.shape[-1]}."
            )


def port_na(
    front, rank, query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None,
    return_lse=False, additional_keys=None, additional_values=None,
):  # fmt: skip
    """stride leaves queries out: the ports' meaning."""
    _check_rank(rank, query, key, value)
    _check_port(query, key, value, additional_keys, additional_values)
    tokens = query.shape[1:-2]
    window = _port_window(rank, tokens, kernel_size, stride, dilation, is_causal)
    kernel, stride, dilation, is_causal = window
    _port_utils.check_stride_vs_kernel(stride, kernel)
    backends = _mps_backends if front.__name__ == "vecina.torch" else _mlx_backends
    module = backends.active_module()
    if module is not None and not return_lse and additional_keys is None:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        forward = getattr(module, f"na{rank}d_forward")
        return forward(query, key, value, *window, scale)
    query, key, value, additional_keys, additional_values = _taken(
        query, key, value, additional_keys, additional_values
    )
    return front.neighborhood_attention(
        query, key, value, kernel, 1, dilation, is_causal, scale, output_stride=stride,
        additional_keys=additional_keys, additional_values=additional_values,
        return_lse=return_lse,
    )  # fmt: skip


def port_qk(
    front, rank, query, key, kernel_size, dilation=1, stride=1, is_causal=False, scale=None
):
    """scale None is head_dim ** -0.5, as in natten-mlx."""
    _check_rank(rank, query, key)
    if tuple(query.shape) != tuple(key.shape):
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must be alike.")
    kernel, stride, dilation, is_causal = _port_window(
        rank, query.shape[1:-2], kernel_size, stride, dilation, is_causal
    )
    return front.qk(
        *_taken(query, key), kernel, 1, dilation, is_causal, scale, output_stride=stride,
        right_aligned=True,
    )  # fmt: skip


def mps_qk(front, rank, query, key, kernel_size, scale=None, **keywords):
    """scale None is no scale, as in natten-mps."""
    scale = 1.0 if scale is None else scale
    return port_qk(front, rank, query, key, kernel_size, scale=scale, **keywords)


def port_av(front, rank, attn, value, kernel_size, dilation=1, stride=1, is_causal=False):
    _check_rank(rank, attn, value)
    kernel, stride, dilation, is_causal = _port_window(
        rank, value.shape[1:-2], kernel_size, stride, dilation, is_causal
    )
    return front.av(
        *_taken(attn, value), kernel, 1, dilation, is_causal, output_stride=stride,
        right_aligned=True,
    )  # fmt: skip


def port_varlen(
    front, rank, query, key, value, kernel_size, dilation=1, scale=None, seq_lens=None,
    spatial_sizes=None,
):  # fmt: skip
    """What lies beyond a length is 0."""
    _check_rank(rank, query, key, value)
    if query.shape != key.shape or query.shape != value.shape:
        raise ValueError("query, key and value must have one shape.")
    name, lengths = (
        ("seq_lens", seq_lens) if spatial_sizes is None else ("spatial_sizes", spatial_sizes)
    )
    batch, tokens = query.shape[0], query.shape[1:-2]
    shape = (batch,) if rank == 1 else (batch, rank)
    if tuple(lengths.shape) != shape or str(lengths.dtype).split(".")[-1] not in ("int32", "int64"):
        raise ValueError(
            f"{name} has shape {tuple(lengths.shape)}, dtype {lengths.dtype}; {shape} of int32 or "
            "int64 is needed."
        )
    kernel = _port_utils.normalize_kernel_size(kernel_size, rank)
    rows = [[n] if rank == 1 else n for n in lengths.tolist()]
    for row in rows:
        if any(n < k or n > most for n, k, most in zip(row, kernel, tokens)):
            most = "L_max" if rank == 1 else "max_spatial"
            raise ValueError(
                f"{name} holds {row}; each must lie between kernel_size {kernel} and {most} "
                f"{tuple(tokens)}."
            )
    lengths = lengths.reshape(batch, rank)
    if hasattr(query, "is_cuda"):
        lengths = lengths.to(query.device)
    return front.neighborhood_attention(
        *_taken(query, key, value), kernel, 1, dilation, scale=scale, lengths=lengths
    )


def port_merge(front, rank, outputs, lse_tensors, use_autograd_fix=True):
    """Differentiable for any number of parts; use_autograd_fix changes nothing."""
    if len(outputs) < 2:
        raise ValueError(f"at least two outputs are needed, not {len(outputs)}.")
    if len(outputs) != len(lse_tensors):
        raise ValueError(
            f"the numbers of outputs and lse_tensors must match: {len(outputs)} and "
            f"{len(lse_tensors)}."
        )
    for output, lse in zip(outputs, lse_tensors):
        if output.shape != outputs[0].shape or lse.shape != output.shape[:-1]:
            raise ValueError(
                f"shapes must match: output {tuple(output.shape)}, lse {tuple(lse.shape)}, first "
                f"output {tuple(outputs[0].shape)}."
            )
    return _operations._merge(front, outputs, lse_tensors)


def _square(rank, kernel_size, dilation) -> tuple[int, int]:
    values = []
    for name, value in (("kernel_size", kernel_size), ("dilation", dilation)):
        axes = _port_utils.normalize_tuple_param(value, rank, name)
        if len(set(axes)) != 1:
            raise ValueError(f"{name} is {value!r}; it must be equal along both axes here.")
        values.append(axes[0])
    return tuple(values)


def port_qk_rpb(front, rank, query, key, rpb, kernel_size, dilation=1, scale=None):
    _check_rank(rank, query, key)
    kernel, dilation = _square(rank, kernel_size, dilation)
    scale = 1.0 if scale is None else scale
    query, key, rpb = _taken(query, key, rpb)
    return front.qk(query, key, kernel, 1, dilation, scale=scale, bias=rpb)


def port_av_fused(
    front, rank, value, kernel_size, dilation=1, attn=None, attention_probs=None
):
    attn = attention_probs if attn is None else attn
    _check_rank(rank, attn, value)
    kernel, dilation = _square(rank, kernel_size, dilation)
    return front.av(*_taken(attn, value), kernel, 1, dilation)


def _heads_last_all(front, run, *tensors):
    """run of heads-last arrays, heads first again.

    Tensors of PyTorch go by way of NumPy; gradients do not, so that they are refused.
    """
    first = tensors[0]
    if type(first).__module__.startswith("torch"):
        import torch

        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            raise NotImplementedError(
                "tensors of PyTorch have no gradients here; take vecina.torch's functions, or "
                "torch.no_grad()."
            )
        arrays = [None if t is None else _as_numpy(t) for t in tensors]
        found = _heads_last_all(front, run, *arrays)
        made = [None if f is None else torch.from_numpy(f).to(first) for f in _listed(found)]
        return tuple(made) if isinstance(found, tuple) else made[0]

    def moved(array, source, to):
        is_like = array is not None and array.ndim == first.ndim
        return _operations._moved(array, source, to) if is_like else array

    found = run(*(moved(array, 1, -2) for array in tensors))
    made = [moved(array, -2, 1) for array in _listed(found)]
    return tuple(made) if isinstance(found, tuple) else made[0]


def _as_numpy(tensor):
    """Of a tensor of PyTorch; bfloat16, which NumPy has not, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _listed(found) -> list:
    return list(found) if isinstance(found, tuple) else [found]


def mlx_qk_rpb(front, rank, query, key, rpb, kernel_size, dilation):
    """Heads first, as in natten-mlx's extras.allin1.functional; tensors of PyTorch too."""
    return _heads_last_all(
        front, lambda q, k, bias: port_qk_rpb(front, rank, q, k, bias, kernel_size, dilation),
        query, key, rpb,
    )  # fmt: skip


def mlx_av(front, rank, attention_probs, value, kernel_size, dilation):
    """Heads first; tensors of PyTorch too."""
    return _heads_last_all(
        front, lambda a, v: port_av_fused(front, rank, v, kernel_size, dilation, a),
        attention_probs, value,
    )  # fmt: skip


def mlx_qkv(front, rank, query, key, value, rpb, kernel_size, dilation):
    """softmax(query key + rpb) value, heads first, without a scale; tensors of PyTorch too."""
    kernel, dilation = _square(rank, kernel_size, dilation)
    return _heads_last_all(
        front,
        lambda q, k, v, bias: front.neighborhood_attention(
            q, k, v, kernel, 1, dilation, scale=1.0, bias=bias
        ),
        query, key, value, rpb,
    )  # fmt: skip


def mlx_qk_rpb_backward(front, rank, d_attn, query, key, rpb, kernel_size, dilation):
    """Gradients of query, key and rpb (None without one), heads first."""
    kernel, dilation = _square(rank, kernel_size, dilation)

    def run(gradient, q, k, bias):
        found = front.qk_backward(q, k, gradient, kernel, 1, dilation, scale=1.0, bias=bias)
        return found["grad_query"], found["grad_key"], found.get("grad_bias")

    return _heads_last_all(front, run, d_attn, query, key, rpb)


def mlx_av_backward(front, rank, d_out, attention_probs, value, kernel_size, dilation):
    """Gradients of attention_probs and value, heads first."""
    kernel, dilation = _square(rank, kernel_size, dilation)

    def run(gradient, a, v):
        found = front.av_backward(a, v, gradient, kernel, 1, dilation)
        return found["grad_attention"], found["grad_value"]

    return _heads_last_all(front, run, d_out, attention_probs, value)


def _support_matrix(metal: tuple[str, ...]) -> dict:
    def tier(available: bool, constraints: list[str]) -> dict:
        ops = {"na1d": available, "na2d": available, "na3d": available}
        return {
            "available": available,
            "forward": {**ops, "split_qk_av": available},
            "backward": {**ops, "split_qk_av": available},
            "varlen": dict(ops),
            "fusion": dict(ops),
            "constraints": constraints,
        }

    missing = ["vecina has no Metal backend of the ports; it computes by its own."]
    return {"pure": tier(True, []), **{name: tier(False, missing) for name in metal}}


def mps_support_matrix(front, rank) -> dict:
    return _support_matrix(("metal",))


def mlx_support_matrix(front, rank) -> dict:
    return _support_matrix(("fast_metal", "nanobind"))


@functools.lru_cache(maxsize=16)
def _window_rows(length, kernel_size, dilation):
    index, bias, _ = axis_lists(Axis(length, kernel_size, 1, dilation, False, 1), False)
    return index, bias


def window_start(front, rank, index, length, kernel_size, dilation, neighborhood_size=None):
    """Also of windows that do not fit, which no call takes: the ports' number, for who asks."""
    if kernel_size * dilation <= length:
        return _window_rows(length, kernel_size, dilation)[0][index][0]
    reach = kernel_size // 2 * dilation
    if dilation == 1:
        return max(index - reach, 0) + min(length - index - reach - 1, 0)
    if index < reach:
        return index % dilation
    if index + reach < length:
        return index - reach
    whole, group = length // dilation * dilation, index % dilation
    if group < length - whole:
        return whole + group - 2 * reach
    return whole + group - kernel_size * dilation


def window_last(front, rank, index, length, kernel_size, dilation):
    """The last key, inclusive, as natten-mps counts."""
    start = window_start(front, rank, index, length, kernel_size, dilation)
    return start + (kernel_size - 1) * dilation


def window_end(front, rank, start, length, kernel_size, dilation):
    """One beyond the last key, as natten-mlx counts."""
    return min(start + kernel_size * dilation, length)


def bias_start(front, rank, index, length, kernel_size, dilation, neighborhood_size=None):
    return _window_rows(length, kernel_size, dilation)[1][index][0]


def window_start_vectorized(front, rank, indices, length, kernel_size, dilation):
    rows = _window_rows(length, kernel_size, dilation)[0]
    return indices.new_tensor([row[0] for row in rows])[indices]


def bias_start_vectorized(front, rank, indices, length, kernel_size, dilation):
    rows = _window_rows(length, kernel_size, dilation)[1]
    return indices.new_tensor([row[0] for row in rows])[indices]


def window_starts_and_ends(front, rank, query_positions, length, kernel_size, dilation):
    """NumPy's arrays of int32: the first key of each position, and one beyond the last."""
    import numpy as np

    starts = [window_start(front, rank, int(i), length, kernel_size, dilation)
              for i in query_positions]  # fmt: skip
    ends = [window_end(front, rank, start, length, kernel_size, dilation) for start in starts]
    return np.array(starts, np.int32), np.array(ends, np.int32)


def bias_starts(front, rank, query_positions, length, kernel_size, dilation):
    import numpy as np

    rows = _window_rows(length, kernel_size, dilation)[1]
    return np.array([rows[int(i)][0] for i in query_positions], np.int32)
