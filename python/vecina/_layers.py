# SPDX-License-Identifier: MIT
"""NeighborhoodAttention1D, 2D and 3D, but for what is each framework's own."""

from __future__ import annotations

from vecina._shapes import Axes, Flags
from vecina._windows import per_axis


class Layer:
    """Projects to query, key and value, attends, projects back.

    Parameters ``qkv`` and ``proj`` as in NATTEN, natten-mps and natten-mlx; with num_kv_heads other
    than num_heads ``q_proj``, ``kv_proj`` and ``proj`` as in the latter two; with rel_pos_bias also
    ``rpb`` ``[num_heads, 2 * kernel_size - 1, ...]`` as in NATTEN before 0.20. Input ``[batch,
    tokens..., embed_dim]``; output the same, or every output_stride-th token. The arguments are
    those of natten-mps and natten-mlx in their order (NATTEN has no num_kv_heads and attn_drop;
    name the arguments after is_causal). stride is NATTEN's.

    Args:
        attn_drop: probability that a weight is dropped in training. The weights are then laid out,
            by qk() and av(): slower, and more memory. In evaluation it costs nothing.
        rel_pos_bias: a learned bias for every relative position.
        pads_small_inputs: axes shorter than kernel_size * dilation are padded with zeros at their
            end, and the output is cut; else they are an error.
    """

    # A framework's class has besides: `front`, the module of neighborhood_attention(), qk() and
    # av(); `layers`, that of Linear and Dropout; and the methods below that are not here.
    rank: int

    def __init_subclass__(cls, rank: int | None = None, **keywords):
        super().__init_subclass__(**keywords)
        if rank is not None:
            cls.rank, cls.__doc__ = rank, Layer.__doc__

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Axes,
        stride: Axes = 1,
        dilation: Axes = 1,
        is_causal: Flags = False,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str | None = None,
        *,
        rel_pos_bias: bool = False,
        output_stride: Axes = 1,
        pads_small_inputs: bool = False,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}.")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads {num_heads} is not divisible by num_kv_heads {num_kv_heads}."
            )
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.kernel_size = per_axis("kernel_size", int, kernel_size, self.rank)
        self.stride = per_axis("stride", int, stride, self.rank)
        self.dilation = per_axis("dilation", int, dilation, self.rank)
        self.is_causal = per_axis("is_causal", bool, is_causal, self.rank)
        self.output_stride = per_axis("output_stride", int, output_stride, self.rank)
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.backend, self.pads_small_inputs = backend, pads_small_inputs
        linear, dropout = self.layers.Linear, self.layers.Dropout
        if num_kv_heads == num_heads:
            self.qkv = linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        else:
            self.q_proj = linear(embed_dim, embed_dim, bias=qkv_bias)
            self.kv_proj = linear(embed_dim, 2 * num_kv_heads * self.head_dim, bias=qkv_bias)
        sizes = (num_heads, *(2 * k - 1 for k in self.kernel_size))
        self._make_bias(sizes if rel_pos_bias else None)
        self.attn_drop = dropout(attn_drop)
        self.proj = linear(embed_dim, embed_dim)
        self.proj_drop = dropout(proj_drop)

    def _project(self, x):
        tokens = x.shape[:-1]
        if self.num_kv_heads == self.num_heads:
            return self._split(self.qkv(x).reshape(*tokens, 3, self.num_heads, self.head_dim))
        query = self.q_proj(x).reshape(*tokens, self.num_heads, self.head_dim)
        packed = self.kv_proj(x).reshape(*tokens, 2, self.num_kv_heads, self.head_dim)
        return (query, *self._split(packed))

    def _attend(self, query, key, value, lengths):
        window = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        bias, strides = self._bias_for(query), dict(output_stride=self.output_stride)
        if self.training and self._drops_weights():
            if lengths is not None:
                raise NotImplementedError(
                    "attention dropout with lengths: not yet; use attn_drop 0 or eval()."
                )
            logits = self.front.qk(query, key, *window, self.scale, bias=bias, **strides)
            weights = self.attn_drop(self._softmax(logits))
            return self.front.av(weights, value, *window, **strides)
        return self.front.neighborhood_attention(
            query, key, value, *window, self.scale, bias=bias, lengths=lengths,
            backend=self.backend, **strides,
        )  # fmt: skip

    def _run(self, x, lengths):
        if x.ndim != self.rank + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"NeighborhoodAttention{self.rank}D expects input shape [batch, {self.rank} axes "
                f"of tokens, embed_dim {self.embed_dim}], not {tuple(x.shape)}."
            )
        tokens = x.shape[1:-1]
        if self.pads_small_inputs:
            missing = [
                max(0, k * d - n) for k, d, n in zip(self.kernel_size, self.dilation, tokens)
            ]
            x = self._pad(x, missing) if any(missing) else x
        output = self._attend(*self._project(x), lengths)
        output = output.reshape(*output.shape[:-2], self.embed_dim)
        if self.pads_small_inputs:
            kept = [-(-n // s) for n, s in zip(tokens, self.output_stride)]
            output = output[(slice(None), *(slice(n) for n in kept))]
        return self.proj_drop(self.proj(output))

    def _description(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )
