# SPDX-License-Identifier: MIT
"""What the docstrings of vecina.torch, numpy, mlx and jax share."""

from __future__ import annotations

import inspect

_PARTS = {
    "layout": """
        Layout, heads last: query ``[batch, tokens..., heads, head_dim]``, key
        ``[batch, tokens..., heads_kv, head_dim]``, value
        ``[batch, tokens..., heads_kv, head_dim_value]``, with one, two or three axes of tokens;
        heads is a multiple of heads_kv.
    """,
    "strides": """
        The last dimension must be contiguous; other strides are free, and nothing is copied.
    """,
    "errors": """
        ValueError says what does not fit. NotImplementedError says why the backend does not take a
        call; ``backend="reference"`` takes every one, slowly. Definition: Hassani et al.,
        arXiv:2504.16922.
    """,
    "e4m3": """
        Experimental: query, key and additional_keys may be float8_e4m3fn, with value and all else
        as before and, to use that format's range, ``head_scale``. Forward only, on Hopper's GPUs
        with value in float16 or bfloat16, and by ``backend="reference"``.
    """,
    "window": """
        kernel_size: tokens of the window along each axis; kernel_size * dilation <= tokens.
        stride: so many queries share a window.
        dilation: distance of the keys of a window.
        is_causal: for each axis, keys after the query are not seen.
        scale: multiplies ``query @ key``; None is head_dim ** -0.5.
        additional_keys, additional_values: ``[batch, n, heads_kv, head_dim]`` and
            ``[batch, n, heads_kv, head_dim_value]``, seen by every query besides its window.
        bias: relative position bias ``[heads, 2 * kernel_size - 1, ...]``, float32 (float64 for
            float64).
        lengths: int32 or int64 ``[batch, rank]``: tokens of each sample; output beyond is 0.
        head_scale: float32 (float64 for float64) ``[heads]``, above 0: multiplies ``query @ key``
            besides scale; with query and key in float8_e4m3fn only.
        output_stride: only tokens 0, s, 2s, ... are queries.
        backend: a name of ``vecina.backends()``; None is the best for where the data lie.
    """,
    "outputs": """
        output ``[batch, tokens..., heads, head_dim_value]``, with return_lse also the natural
        logarithm of the sum of exp(logits), ``[batch, tokens..., heads]``.
    """,
    "attention": """
        Each query ``[batch, queries, heads, head_dim]`` attends to every key
        ``[batch, keys, heads_kv, head_dim]``.

        is_causal: query i sees keys 0 to i, also when there are more or fewer keys than queries.
        The rest is as in neighborhood_attention().
    """,
    "packed": """
        query, key, value: ``[1, tokens of all samples, heads, head_dim]``; each sample's tokens are
            row-major.
        lengths: int32 or int64 ``[samples, rank]`` (``[samples]`` for one axis): the extents.
    """,
    "packed_outputs": """
        output ``[1, tokens, heads, head_dim_value]``, with return_lse also lse
        ``[1, tokens, heads]``.
    """,
    "merge": """
        Attentions over different keys, made one: (output, lse).

        output = sum of w_i outputs[i] with w = softmax over i of lses[i]; two or more of one shape.
    """,
    "logits": """
        ``[batch, queries..., heads, slots]`` in the dtype of query, slots row-major over the axes
        of the window, then the additional tokens; -inf in slots without a key.
    """,
}  # fmt: skip


def filled(text: str) -> str:
    """text with each line ``{name}`` replaced by that part, indented as the line."""
    lines = []
    for line in text.splitlines():
        name = line.strip()
        if name.startswith("{") and name.endswith("}"):
            indent = line[: len(line) - len(line.lstrip())]
            part = inspect.cleandoc(_PARTS[name[1:-1]]).splitlines()
            lines += [indent + shared if shared else "" for shared in part]
        else:
            lines.append(line)
    return "\n".join(lines)


def documented(function):
    """A decorator: the docstring with its parts filled in."""
    if function.__doc__ is not None:  # python -OO has none
        function.__doc__ = filled(inspect.cleandoc(function.__doc__))
    return function
