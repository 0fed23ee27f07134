# SPDX-License-Identifier: MIT
"""The functions of every release of NATTEN, in terms of a module like vecina.torch (``front``).

Each takes the front, the rank (0: from the tensors) and the arguments by the release's names.
"""

from __future__ import annotations

import sys

from vecina._windows import per_axis

_recorded: dict[str, dict] = {}


def recorded() -> dict[str, dict]:
    """Tuning arguments that the last call of each function was given, by name of the function.

    vecina chooses its kernels itself: such arguments are taken and kept, and change nothing.
    """
    return {name: dict(given) for name, given in _recorded.items()}


def _record(name: str, tuning: dict) -> None:
    # run_persistent_kernel alone is True by default; the others are False or None.
    given = {
        key: value
        for key, value in tuning.items()
        if value is not None and value is not (key == "run_persistent_kernel")
    }
    if given:
        _recorded[name] = given


def _dense(*tensors) -> None:
    for tensor in tensors:
        if getattr(tensor, "is_nested", False) or getattr(tensor, "is_sparse", False):
            raise NotImplementedError("nested and sparse tensors: not yet; use dense ones.")


def _taken(*tensors) -> list:
    """Copies of those whose last dimension does not lie in one piece, as NATTEN's calls make.

    Other strides may stay. Arrays of NumPy and MLX are taken as they are.
    """
    return [
        tensor.contiguous()
        if hasattr(tensor, "is_contiguous") and tensor.ndim and tensor.shape[-1] > 1
        and tensor.stride(-1) != 1
        else tensor
        for tensor in tensors
    ]  # fmt: skip


def _is_on_host(tensor) -> bool:
    return str(getattr(tensor, "device", "cpu")) == "cpu"


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_dynamo_compiling()


def _is_capturing(tensor) -> bool:
    import torch

    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


# NATTEN


def _check_tiles(tuning: dict) -> None:
    """Tiles of queries and of keys belong together, in each pass."""
    for name, value in tuning.items():
        other = name.replace("q_tile", "kv_tile")
        if other != name and (value is None) != (tuning[other] is None):
            raise ValueError(f"{name} and {other} belong together.")


def natten_na(
    front, rank, query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None,
    rpb=None, additional_keys=None, additional_values=None, return_lse=False, backend=None,
    kernel_schedule=None, **tuning,
):  # fmt: skip
    from vecina.compat import _backends, _checks, _types

    _dense(query, key, value)
    rank = rank or query.ndim - 3
    if query.ndim != rank + 3 or rank not in (1, 2, 3):
        raise ValueError(f"query has {query.ndim} dimensions; batch, tokens, heads, head_dim.")
    _backends.check(backend, _backends.FNA)
    _check_tiles(tuning)
    if not isinstance(kernel_schedule, (_types.KernelSchedule, type(None))):
        if kernel_schedule not in ("non", "coop", "pp"):
            raise ValueError(f"kernel_schedule {kernel_schedule!r} is none of non, coop, pp.")
    window = _checks.check_all_args(rank, kernel_size, stride, dilation, is_causal)
    _checks.check_args_against_input(query, *window)
    query, key, value, additional_keys, additional_values, rpb = _taken(
        query, key, value, additional_keys, additional_values, rpb
    )
    _record(f"na{rank}d", {**tuning, "backend": backend, "kernel_schedule": kernel_schedule})
    return front.neighborhood_attention(
        query, key, value, *window, scale, additional_keys=additional_keys,
        additional_values=additional_values, bias=rpb, return_lse=return_lse,
    )  # fmt: skip


def any_shape(front, rank, input_shape) -> bool:
    """True: vecina, which computes it, takes every shape."""
    return True


def flex_mask(front, rank, na_dim, input_size, kernel_size, dilation, is_causal):
    """A BlockMask of torch's flex_attention for tokens that lie in a row."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    from vecina import _torch_split, _windows
    from vecina.compat import _checks

    window = _checks.check_all_args(na_dim, kernel_size, dilation, is_causal)
    kernel, dilation, is_causal = window
    axes = _windows.axes_of(tuple(input_size), kernel, 1, dilation, is_causal, 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables = _torch_split._make_tables(axes, False, device)
    tokens = len(tables.index)
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device=device)
    rows = torch.arange(tokens, device=device)[:, None].expand_as(tables.index)
    mask[rows[tables.seen], tables.index[tables.seen]] = True
    return create_block_mask(
        lambda b, h, i, j: mask[i, j], None, None, tokens, tokens, device=device
    )


def natten_reference(front, rank, query, key, value, kernel_size, **keywords):
    """By vecina's reference, which sums in double, on the host: tensors go there and back."""
    for name in ("stride", "dilation", "is_causal"):
        if keywords[name] is None:
            del keywords[name]
    if not _is_on_host(query):
        device, query, key, value = query.device, query.cpu(), key.cpu(), value.cpu()
        for name in ("additional_keys", "additional_values"):
            if keywords.get(name) is not None:
                keywords[name] = keywords[name].cpu()
        found = natten_reference(front, rank, query, key, value, kernel_size, **keywords)
        return tuple(t.to(device) for t in found) if isinstance(found, tuple) else found.to(device)
    for name in ("additional_keys", "additional_values"):
        keywords[name] = _taken(keywords.get(name))[0]
    return front.neighborhood_attention(
        *_taken(query, key, value), kernel_size, backend="reference", **keywords
    )


def varlen_parameters(front, rank, query, key, value, seqlens_Q=None, seqlens_KV=None):
    """(cumulative lengths of queries, of keys, largest of queries, of keys); int32 tensors."""
    import torch

    if (seqlens_Q is None) != (seqlens_KV is None):
        raise ValueError("seqlens_Q and seqlens_KV belong together.")
    if seqlens_Q is None:
        return None, None, 0, 0
    for name, lengths, tensor in (("seqlens_Q", seqlens_Q, query), ("seqlens_KV", seqlens_KV, key)):
        if not isinstance(lengths, torch.Tensor) or lengths.dtype != torch.int32:
            raise ValueError(f"{name} must be a tensor of int32.")
        if lengths.ndim != 1 or len(lengths) < 1 or lengths.device != tensor.device:
            raise ValueError(f"{name} must be one-dimensional, not empty, on the tensors' device.")
    if len(seqlens_Q) != len(seqlens_KV):
        raise ValueError(f"{len(seqlens_Q)} sequences of queries, {len(seqlens_KV)} of keys.")
    if query.shape[0] != 1:
        raise ValueError(f"packed sequences need batch 1, not {query.shape[0]}.")
    zero = seqlens_Q.new_zeros(1)
    sums = [
        torch.cat((zero, lengths.cumsum(0, dtype=torch.int32)))
        for lengths in (seqlens_Q, seqlens_KV)
    ]
    return (*sums, int(seqlens_Q.max()), int(seqlens_KV.max()))


def _packed_sums(query, key, lengths: dict) -> list | None:
    """Cumulative lengths of queries and of keys; None: not packed. Their numbers are not read."""
    sums = [lengths[f"cumulative_seqlen_{side}"] for side in ("Q", "KV")]
    if lengths["seqlens_Q"] is not None or lengths["seqlens_KV"] is not None:
        seqlens = lengths["seqlens_Q"], lengths["seqlens_KV"]
        sums = varlen_parameters(None, 0, query, key, key, *seqlens)[:2]
    elif all(s is None for s in sums):
        return None
    import torch

    if any(s is None or not isinstance(s, torch.Tensor) or s.dtype != torch.int32 for s in sums):
        raise ValueError("cumulative_seqlen_Q and _KV belong together, as tensors of int32.")
    if any(s.ndim != 1 or len(s) < 2 for s in sums) or len(sums[0]) != len(sums[1]):
        raise ValueError("cumulative_seqlen_Q and _KV need sequences + 1 numbers each.")
    if query.shape[0] != 1 or key.shape[0] != 1:
        raise ValueError(f"packed sequences need batch 1, not {query.shape[0]}.")
    if lengths["seqlens_Q"] is None:
        most = [lengths[f"max_seqlen_{side}"] for side in ("Q", "KV")]
        totals = (query.shape[1], key.shape[1])
        if not all(isinstance(n, int) and 0 <= n <= total for n, total in zip(most, totals)):
            raise ValueError(f"max_seqlen_Q and _KV are {most}; int of at most {totals} is needed.")
        if (most[0] == 0) != (most[1] == 0):
            raise ValueError(f"max_seqlen_Q and _KV are {most}; both are 0, or none.")
    return sums


def _packed_lengths(query, key, sums) -> list[list[int]]:
    """Lengths of the queries and of the keys of each sequence.

    Tokens after the last one become sequences of their own, without keys and without queries.
    """
    found, rests = [], []
    for name, tensor, bounds in zip(("Q", "KV"), (query, key), (s.tolist() for s in sums)):
        total = tensor.shape[1]
        if bounds[0] != 0 or bounds[-1] > total or bounds != sorted(bounds):
            raise ValueError(
                f"cumulative lengths {name} are {bounds}; they must rise from 0 to at most {total}."
            )
        found.append([end - begin for begin, end in zip(bounds, bounds[1:])])
        rests.append(total - bounds[-1])
    for rest in ((rests[0], 0), (0, rests[1])):
        if any(rest):
            for lengths, more in zip(found, rest):
                lengths.append(more)
    return found


def natten_attention(
    front, rank, query, key, value, is_causal=False, scale=None, return_lse=False, backend=None,
    seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None,
    max_seqlen_Q=None, max_seqlen_KV=None, **tuning,
):  # fmt: skip
    """Packed sequences are one call.

    Queries after the last sequence, and those of a sequence without keys, give 0 and lse -inf. A
    device is waited for, to look at the lengths. While a CUDA graph is captured they are not looked
    at, so the greatest ones must be right, and seqlens_Q and seqlens_KV raise ValueError. On the
    CPU under torch.compile every token must be some sequence's.
    """
    from vecina.compat import _backends

    _dense(query, key, value)
    if query.ndim != 4:
        raise ValueError(f"query has {query.ndim} dimensions; [batch, queries, heads, head_dim].")
    _backends.check(backend, _backends.FMHA)
    _check_tiles(tuning)
    query, key, value = _taken(query, key, value)
    _record("attention", {**tuning, "backend": backend})
    is_capturing = _is_capturing(query)
    if is_capturing and (seqlens_Q is not None or seqlens_KV is not None):
        raise ValueError(
            "seqlens_Q and seqlens_KV are looked at, which a CUDA graph cannot hold; give "
            "cumulative_seqlen_Q and _KV with max_seqlen_Q and _KV."
        )
    sums = _packed_sums(
        query,
        key,
        dict(
            seqlens_Q=seqlens_Q,
            seqlens_KV=seqlens_KV,
            cumulative_seqlen_Q=cumulative_seqlen_Q,
            cumulative_seqlen_KV=cumulative_seqlen_KV,
            max_seqlen_Q=max_seqlen_Q,
            max_seqlen_KV=max_seqlen_KV,
        ),
    )
    if sums is None:
        return front.attention(query, key, value, bool(is_causal), scale, return_lse=return_lse)
    import torch

    most = [0, 0] if seqlens_Q is not None else [max_seqlen_Q, max_seqlen_KV]
    is_query = None
    if is_capturing:
        of_queries, of_keys = (s.diff() for s in sums)
        # Tokens after the last sequence are in no row that a kernel writes.
        is_query, is_key = (
            (torch.arange(t.shape[1], device=t.device) < s[-1])[None, :, None, None]
            for t, s in zip((query, key), sums)
        )
        query = query.where(is_query, 0)
        key, value = key.where(is_key, 0), value.where(is_key, 0)
    elif seqlens_Q is None and _is_compiling() and _is_on_host(query):
        of_queries, of_keys = (s.diff() for s in sums)
    else:
        lengths = _packed_lengths(query, key, sums)
        most = [max(given, *own) for given, own in zip(most, lengths)]
        of_queries, of_keys = (
            torch.tensor(own, dtype=torch.int32, device=query.device) for own in lengths
        )
    found = front.attention_varlen(
        query, key, value, of_keys, bool(is_causal), scale, query_lengths=of_queries,
        max_length=max(most[1], 1), max_query_length=max(most[0], 1), return_lse=return_lse,
    )  # fmt: skip
    if is_query is None:
        return found
    if not return_lse:
        return found.where(is_query, 0)
    return found[0].where(is_query, 0), found[1].where(is_query[..., 0], -torch.inf)


def natten_merge(
    front, rank, outputs, lse_tensors, torch_compile=True, use_autograd_fix=True
):
    """Differentiable for any number of parts; the two switches change nothing."""
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        raise ValueError(
            f"two or more outputs and as many lse_tensors, not {len(outputs)} and "
            f"{len(lse_tensors)}."
        )
    for output, lse in zip(outputs, lse_tensors):
        if output.ndim != 4 or output.shape != outputs[0].shape or lse.shape != output.shape[:-1]:
            raise ValueError(
                f"outputs {tuple(output.shape)} and lse {tuple(lse.shape)} do not fit; all "
                "[batch, tokens, heads, head_dim] and without head_dim."
            )
    return _merge(front, outputs, lse_tensors)


def _merge(front, outputs, lse_tensors):
    """Tensors of PyTorch may have their lse in another dtype, as half ones of old logits have."""
    if hasattr(outputs[0], "requires_grad"):
        import torch

        if outputs[0].device.type not in ("cpu", "cuda"):
            return _composed_merge(outputs, lse_tensors)
        dtype = torch.float64 if outputs[0].dtype == torch.float64 else torch.float32
        lse_tensors = _taken(*(lse.to(dtype) for lse in lse_tensors))
        outputs = _taken(*outputs)
    return front.merge_attentions(list(outputs), list(lse_tensors))


def _composed_merge(outputs, lse_tensors):
    """Of PyTorch's operations, where the library is not."""
    import torch

    lses = torch.stack([lse.to(torch.promote_types(lse.dtype, torch.float32))
                        for lse in lse_tensors])  # fmt: skip
    weights = lses.softmax(0).unsqueeze(-1)
    merged = sum(weight * output for weight, output in zip(weights, outputs))
    return merged.to(outputs[0].dtype), lses.logsumexp(0)


# NATTEN before 0.20: the two halves, heads first


def _moved(tensor, source: int, to: int):
    """PyTorch's movedim(), which MLX and NumPy call moveaxis()."""
    if hasattr(tensor, "movedim"):
        return tensor.movedim(source, to)
    if hasattr(tensor, "moveaxis"):
        return tensor.moveaxis(source, to)
    return sys.modules["numpy"].moveaxis(tensor, source, to)


def _heads_last(tensor):
    return None if tensor is None else _moved(tensor, 1, -2)


def _cubed(kernel_size, dilation, kernel_size_d, dilation_d):
    if kernel_size_d is None:
        return kernel_size, dilation
    return (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)


def _is_nested(tensor) -> bool:
    return getattr(tensor, "is_nested", False)


def _sample_by_sample(call, *tensors):
    """call of each tensor in nested ones (None stays None), as one nested tensor."""
    import torch

    if not all(tensor is None or _is_nested(tensor) for tensor in tensors):
        raise ValueError("all tensors must be nested, or none.")
    if len({tensor.size(0) for tensor in tensors if tensor is not None}) != 1:
        raise ValueError("nested tensors of as many samples are needed.")
    samples = zip(*(
        [None] * tensors[0].size(0) if tensor is None else tensor.unbind() for tensor in tensors
    ))  # fmt: skip
    return torch.nested.as_nested_tensor([call(*sample) for sample in samples])


def _heads_first_rank(rank, *tensors) -> None:
    _dense(*tensors)
    for tensor in tensors:
        if tensor.ndim != rank + 3:
            raise ValueError(f"{rank + 3} dimensions are needed, [batch, heads, ...]; not "
                             f"{tensor.ndim}.")  # fmt: skip


def heads_first_qk(
    front, rank, query, key, kernel_size, dilation, bias=None, rpb=None, is_causal=False,
    additional_keys=None, kernel_size_d=None, dilation_d=None,
):  # fmt: skip
    """Nested tensors, too, of [batch, heads, tokens..., ...] each."""
    if _is_nested(query):
        return _sample_by_sample(
            lambda q, k, more: heads_first_qk(
                front, rank, q, k, kernel_size, dilation, bias, rpb, is_causal, more,
                kernel_size_d, dilation_d,
            ),
            query, key, additional_keys,
        )  # fmt: skip
    _heads_first_rank(rank, query, key)
    kernel_size, dilation = _cubed(kernel_size, dilation, kernel_size_d, dilation_d)
    is_causal = False if is_causal is None else is_causal
    bias = rpb if bias is None else bias
    query, key, additional_keys, bias = _taken(query, key, additional_keys, bias)
    if bias is not None and is_causal not in (False, (False,) * rank, [False] * rank):
        raise NotImplementedError("bias with is_causal is not defined in NATTEN; leave one out.")
    logits = front.qk(
        _heads_last(query), _heads_last(key), kernel_size, 1, dilation, is_causal, 1.0,
        additional_keys=_heads_last(additional_keys), bias=bias,
    )  # fmt: skip
    return _moved(logits, -2, 1)


def heads_first_av(
    front, rank, attn, value, kernel_size, dilation, additional_values=None, is_causal=False,
    kernel_size_d=None, dilation_d=None,
):  # fmt: skip
    """Nested tensors, too, of [batch, heads, tokens..., ...] each."""
    if _is_nested(attn):
        return _sample_by_sample(
            lambda a, v, more: heads_first_av(
                front, rank, a, v, kernel_size, dilation, more, is_causal, kernel_size_d,
                dilation_d,
            ),
            attn, value, additional_values,
        )  # fmt: skip
    _heads_first_rank(rank, attn, value)
    kernel_size, dilation = _cubed(kernel_size, dilation, kernel_size_d, dilation_d)
    is_causal = False if is_causal is None else is_causal
    attn, value, additional_values = _taken(attn, value, additional_values)
    output = front.av(
        _heads_last(attn), _heads_last(value), kernel_size, 1, dilation, is_causal,
        additional_values=_heads_last(additional_values),
    )  # fmt: skip
    return _moved(output, -2, 1)


def _check_odd(kernel_size) -> None:
    sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    if any(isinstance(size, int) and (size % 2 == 0 or size < 2) for size in sizes):
        raise RuntimeError(
            f"kernel_size is {kernel_size}; in NATTEN's qk and av it must be odd and over 1."
        )


# Before 0.20 Python looked at types and additional tokens, and C++ at the rest.


def _in_cpp(call, first):
    """What call gives; what it finds not to fit is a RuntimeError, as in NATTEN's C++.

    Nested tensors (the first one tells) are Python's.
    """
    if _is_nested(first):
        return call()
    try:
        return call()
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def _check_types(rank, kernel_size, dilation, is_causal) -> None:
    per_axis("kernel_size", int, kernel_size, rank)
    per_axis("dilation", int, 1 if dilation is None else dilation, rank)
    per_axis("is_causal", bool, False if is_causal is None else is_causal, rank)


def _check_ints(**sizes) -> None:
    """0.14 and 0.15 had no other types in these places."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
            raise TypeError(f"{name} is {size!r}; int is needed.")


def _check_additional(name, more, like) -> None:
    """Heads first. Nested tensors are looked at sample by sample, by who computes."""
    if more is not None and not _is_nested(more) and (
        more.ndim != 4
        or more.shape[:2] != like.shape[:2]
        or more.shape[-1] != like.shape[-1]
    ):
        raise ValueError(
            f"{name} {tuple(more.shape)} do not fit {tuple(like.shape)}: batch, heads and head_dim "
            "must be the same, with one axis of tokens."
        )


def natten_qk(front, rank, query, key, kernel_size, dilation, kernel_size_d=None, **keywords):
    """Heads first; RuntimeError for an even window, as before 0.20."""
    _check_odd((kernel_size, kernel_size_d) if kernel_size_d is not None else kernel_size)
    return _in_cpp(lambda: heads_first_qk(
        front, rank, query, key, kernel_size, dilation, kernel_size_d=kernel_size_d, **keywords
    ), query)  # fmt: skip


def natten_av(front, rank, attn, value, kernel_size, dilation, kernel_size_d=None, **keywords):
    """Heads first; RuntimeError for an even window, as before 0.20."""
    _check_odd((kernel_size, kernel_size_d) if kernel_size_d is not None else kernel_size)
    return _in_cpp(lambda: heads_first_av(
        front, rank, attn, value, kernel_size, dilation, kernel_size_d=kernel_size_d, **keywords
    ), attn)  # fmt: skip


def natten15_qk(front, rank, query, key, kernel_size, dilation, additional_keys=None, **keywords):
    """Of 0.14 and 0.15."""
    sizes = {name: keywords.get(name) for name in ("kernel_size_d", "dilation_d")}
    _check_ints(kernel_size=kernel_size, dilation=dilation, **sizes)
    _check_additional("additional_keys", additional_keys, query)
    return natten_qk(
        front, rank, query, key, kernel_size, dilation, additional_keys=additional_keys, **keywords
    )


def natten15_av(
    front, rank, attn, value, kernel_size, dilation, additional_values=None, **keywords
):
    """Of 0.14 and 0.15."""
    sizes = {name: keywords.get(name) for name in ("kernel_size_d", "dilation_d")}
    _check_ints(kernel_size=kernel_size, dilation=dilation, **sizes)
    _check_additional("additional_values", additional_values, value)
    return natten_av(
        front, rank, attn, value, kernel_size, dilation, additional_values=additional_values,
        **keywords,
    )  # fmt: skip


def natten17_qk(
    front, rank, query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False,
    rpb=None,
):  # fmt: skip
    if not _is_nested(query):
        _check_types(rank, kernel_size, dilation, is_causal)
        _check_additional("additional_keys", additional_keys, query)
    return natten_qk(
        front, rank, query, key, kernel_size, dilation, additional_keys=additional_keys,
        is_causal=is_causal, rpb=rpb,
    )  # fmt: skip


def natten17_av(
    front, rank, attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False
):
    if not _is_nested(attn):
        _check_types(rank, kernel_size, dilation, is_causal)
        _check_additional("additional_values", additional_values, value)
    return natten_av(
        front, rank, attn, value, kernel_size, dilation, additional_values=additional_values,
        is_causal=is_causal,
    )  # fmt: skip


def natten17_na(
    front, rank, query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None,
    additional_keys=None, additional_values=None, xformers_kwargs=None,
):  # fmt: skip
    """Heads last, in one call."""
    _dense(query, key, value)
    _check_types(rank, kernel_size, dilation, is_causal)
    return _in_cpp(lambda: natten_na(
        front, rank, query, key, value, kernel_size, 1, dilation, is_causal, scale, rpb,
        additional_keys, additional_values, xformers_kwargs=xformers_kwargs,
    ), query)  # fmt: skip
