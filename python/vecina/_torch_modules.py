# SPDX-License-Identifier: MIT
"""NeighborhoodAttention1D, 2D and 3D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecina.torch as vt
from vecina._shapes import Axes, Flags
from vecina._torch_split import av, qk
from vecina._windows import per_axis


class _NeighborhoodAttention(nn.Module):
    """Projects to query, key and value, attends, projects back.

    Parameters ``qkv`` and ``proj`` as in NATTEN and natten-mps; with num_kv_heads other than
    num_heads ``q_proj``, ``kv_proj`` and ``proj`` as in natten-mps; with rel_pos_bias also ``rpb``
    ``[num_heads, 2 * kernel_size - 1, ...]`` as in NATTEN before 0.20. Input ``[batch, tokens...,
    embed_dim]``; output the same, or every output_stride-th token. The arguments are those of
    natten-mps in its order (NATTEN has no num_kv_heads and attn_drop; name the arguments after
    is_causal). stride is NATTEN's.

    Args:
        attn_drop: probability that a weight is dropped in training. The weights are then laid out,
            by qk() and av(): slower, and more memory. In evaluation it costs nothing.
        rel_pos_bias: a learned bias for every relative position.
        pads_small_inputs: axes shorter than kernel_size * dilation are padded with zeros at their
            end, and the output is cut; else they are an error.
    """

    rank: int

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
        if num_kv_heads == num_heads:
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
            self.kv_proj = nn.Linear(embed_dim, 2 * num_kv_heads * self.head_dim, bias=qkv_bias)
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * k - 1 for k in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter("rpb", None)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = x.shape[:-1]
        if self.num_kv_heads == self.num_heads:
            return self.qkv(x).view(*tokens, 3, self.num_heads, self.head_dim).unbind(-3)
        query = self.q_proj(x).view(*tokens, self.num_heads, self.head_dim)
        packed = self.kv_proj(x).view(*tokens, 2, self.num_kv_heads, self.head_dim)
        return (query, *packed.unbind(-3))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None) -> Tensor:
        window = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        if self.training and self.attn_drop.p > 0:
            if lengths is not None:
                raise NotImplementedError(
                    "attention dropout with lengths: not yet; use attn_drop 0 or eval()."
                )
            strides = dict(output_stride=self.output_stride)
            logits = qk(query, key, *window, self.scale, bias=self.rpb, **strides)
            return av(self.attn_drop(logits.softmax(-1)), value, *window, **strides)
        return vt.neighborhood_attention(
            query, key, value, *window, self.scale, bias=self.rpb, lengths=lengths,
            output_stride=self.output_stride, backend=self.backend,
        )  # fmt: skip

    def _pad(self, x: Tensor) -> Tensor:
        missing = [
            max(0, k * d - n)
            for k, d, n in zip(self.kernel_size, self.dilation, x.shape[1:-1])
        ]
        if not any(missing):
            return x
        # functional.pad counts axes from the last, which is embed_dim.
        return nn.functional.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: int32 or int64 ``[batch, rank]``, tokens of each sample; None: all."""
        if x.ndim != self.rank + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"NeighborhoodAttention{self.rank}D expects input shape [batch, {self.rank} axes "
                f"of tokens, embed_dim {self.embed_dim}], not {tuple(x.shape)}."
            )
        tokens = x.shape[1:-1]
        if self.pads_small_inputs:
            x = self._pad(x)
        output = self._attend(*self._project(x), lengths).flatten(-2)
        if self.pads_small_inputs:
            kept = [-(-n // s) for n, s in zip(tokens, self.output_stride)]
            output = output[(slice(None), *(slice(n) for n in kept))]
        return self.proj_drop(self.proj(output))

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )


class NeighborhoodAttention1D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 3
