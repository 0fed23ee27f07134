# SPDX-License-Identifier: MIT
"""NeighborhoodAttention1D, 2D and 3D of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecina.torch as vt
from vecina._layers import Layer


class _NeighborhoodAttention(Layer, nn.Module):
    front, layers = vt, nn

    def _make_bias(self, shape) -> None:
        if shape is None:
            self.register_parameter("rpb", None)
            return
        self.rpb = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def _bias_for(self, query: Tensor) -> Tensor | None:
        return self.rpb

    def _split(self, packed: Tensor) -> tuple[Tensor, ...]:
        return packed.unbind(-3)

    def _drops_weights(self) -> bool:
        return self.attn_drop.p > 0

    def _softmax(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def _pad(self, x: Tensor, missing: list[int]) -> Tensor:
        # functional.pad counts axes from the last, which is embed_dim.
        return nn.functional.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: int32 or int64 ``[batch, rank]``, tokens of each sample; None: all."""
        return self._run(x, lengths)

    def extra_repr(self) -> str:
        return self._description()


class NeighborhoodAttention1D(_NeighborhoodAttention, rank=1):
    pass


class NeighborhoodAttention2D(_NeighborhoodAttention, rank=2):
    pass


class NeighborhoodAttention3D(_NeighborhoodAttention, rank=3):
    pass
