# SPDX-License-Identifier: MIT
"""Trains a small denoiser of images on the CPU, on pictures that it makes, and saves what it does.

    python examples/python/denoise.py [STEPS] [FILE.pgm]

The picture has a row each: noisy, denoised, clean.
"""

import sys
import time

import torch
from torch import nn

from vecina.torch import NeighborhoodAttention2D

SIZE, NOISE = 32, 0.5


def pictures(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, SIZE, SIZE, 1]: a disc on a slope of grey, each anywhere."""
    x, y, radius, slope, grey = torch.rand(5, count, 1, 1, generator=generator)
    down, right = torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij")
    disc = (down - y) ** 2 + (right - x) ** 2 < (0.1 + 0.3 * radius) ** 2
    return torch.where(disc, grey, slope * down + (1 - slope) * right)[..., None] * 2 - 1


class Denoiser(nn.Module):
    """Says the noise; layers of neighborhood attention, every other one dilated."""

    def __init__(self, dim: int = 32, depth: int = 4):
        super().__init__()
        self.enter, self.leave = nn.Linear(9, dim), nn.Linear(dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.attentions = nn.ModuleList(
            NeighborhoodAttention2D(dim, 2, kernel_size=7, dilation=1 + 3 * (i % 2))
            for i in range(depth)
        )

    def forward(self, image):
        # Each token is a pixel with its eight neighbours.
        planes = nn.functional.pad(image.movedim(-1, 1), (1, 1, 1, 1), mode="reflect")
        x = self.enter(planes.unfold(2, 3, 1).unfold(3, 3, 1).squeeze(1).flatten(-2))
        for norm, attention in zip(self.norms, self.attentions):
            x = x + attention(norm(x))
        return self.leave(x)


def save(path: str, rows: list[torch.Tensor]) -> None:
    """Rows of pictures as one grey picture in the PGM format."""
    picture = torch.cat([torch.cat(list(row[..., 0]), 1) for row in rows], 0)
    levels = ((picture.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    with open(path, "wb") as file:
        file.write(b"P5 %d %d 255\n" % (levels.shape[1], levels.shape[0]))
        file.write(levels.contiguous().numpy().tobytes())


def train(steps: int, path: str | None = None, batch: int = 4) -> tuple[float, float]:
    """Mean squared error of the last steps, and that of leaving the picture as it is."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Denoiser()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        clean = pictures(batch, generator)
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
        loss = (noisy - net(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if path:
        with torch.no_grad():
            save(path, [noisy, noisy - net(noisy), clean])
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last), NOISE**2


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    path = sys.argv[2] if len(sys.argv) > 2 else "denoised.pgm"
    start = time.perf_counter()
    error, before = train(steps, path)
    print(f"error {before:.3f} -> {error:.4f} in {time.perf_counter() - start:.0f} s; see {path}")


if __name__ == "__main__":
    main()
