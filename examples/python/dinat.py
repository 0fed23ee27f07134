# SPDX-License-Identifier: MIT
"""A stack as in DiNAT: layers of neighborhood attention, every other one dilated as far as it goes.

Its weights go out as a state dict of NATTEN 0.17 and come back in: the keys are the same.
"""

import torch
from torch import nn

from vecina.compat import for_version
from vecina.torch import NeighborhoodAttention2D


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def stack(kind, depth: int = 4, dim: int = 32, heads: int = 2, tokens: int = 28) -> nn.Module:
    """Layers of a kind of attention module, for inputs of tokens x tokens or more."""
    layers = []
    for i in range(depth):
        dilation = tokens // 7 if i % 2 else 1
        attention = kind(dim, heads, kernel_size=7, dilation=dilation, rel_pos_bias=True)
        layers.append(Layer(attention, dim))
    return nn.Sequential(*layers)


def main() -> float:
    """The largest difference between the two models' outputs."""
    torch.manual_seed(0)
    theirs = stack(for_version("0.17.5").NeighborhoodAttention2D).eval()
    ours = stack(NeighborhoodAttention2D).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: every key is there, and no other
    image = torch.randn(1, 28, 28, 32)
    with torch.no_grad():
        return (ours(image) - theirs(image)).abs().max().item()


if __name__ == "__main__":
    print(f"largest difference {main():.1e}")
