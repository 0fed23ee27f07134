# SPDX-License-Identifier: MIT
"""NeighborhoodAttention1D, 2D and 3D of MLX."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

import vecina.mlx as vm
from vecina._layers import Layer


class _NeighborhoodAttention(Layer, nn.Module):
    front, layers = vm, nn

    def _make_bias(self, shape) -> None:
        self.rpb = None if shape is None else 0.02 * mx.random.normal(shape)

    def _bias_for(self, query: mx.array) -> mx.array | None:
        if self.rpb is None:
            return None
        return self.rpb.astype(mx.float64 if query.dtype == mx.float64 else mx.float32)

    def _split(self, packed: mx.array) -> tuple[mx.array, ...]:
        return tuple(packed[..., i, :, :] for i in range(packed.shape[-3]))

    def _drops_weights(self) -> bool:
        return self.attn_drop._p_1 < 1

    def _softmax(self, logits: mx.array) -> mx.array:
        return mx.softmax(logits, axis=-1)

    def _pad(self, x: mx.array, missing: list[int]) -> mx.array:
        return mx.pad(x, [(0, 0), *((0, m) for m in missing), (0, 0)])

    def __call__(self, x: mx.array, lengths: mx.array | None = None) -> mx.array:
        """lengths: int32 or int64 ``[batch, rank]``, tokens of each sample; None: all."""
        return self._run(x, lengths)

    def _extra_repr(self) -> str:
        return self._description()


class NeighborhoodAttention1D(_NeighborhoodAttention, rank=1):
    pass


class NeighborhoodAttention2D(_NeighborhoodAttention, rank=2):
    pass


class NeighborhoodAttention3D(_NeighborhoodAttention, rank=3):
    pass
