#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times large windows beside FlexAttention in one process: forward, backward, and the backward
whose bits may differ from run to run.

    VECINA_CUDA_TARGET=80 python benchmarks/flex_attention.py [--seconds S] > rows.json

Needs PyTorch with CUDA and the package vecina. VECINA_CUDA_TARGET=80 leaves Hopper's kernels out.
FlexAttention gets its tokens in tiles of 128 (reordering them is not timed), and which pairs of
tiles are seen whole, in part or not at all, exactly. Each side runs back to back for S seconds, of
which the second half counts: vecina, FlexAttention, vecina, FlexAttention; the better turn of each
is printed, with the largest difference of what both compute.
"""
import argparse
import itertools
import json
import math
import sys

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import gpu

TILE = 128
MAX_DIFFERENCE = 0.02  # of the largest number
#: tokens, window, tile of FlexAttention, heads, head_dim
PROBLEMS = (
    ((256, 256), (80, 80), (8, 16), 24, 128),
    ((30, 48, 80), (18, 24, 24), (2, 8, 8), 24, 128),
)


def tiled(tensor, tile):
    """[batch, tokens..., heads, head_dim] as [batch, heads, tokens tile by tile, head_dim]."""
    rank, tokens = len(tile), tensor.shape[1:-2]
    split = list(itertools.chain(*((n // t, t) for n, t in zip(tokens, tile))))
    axes = [1 + 2 * a for a in range(rank)] + [2 + 2 * a for a in range(rank)]
    tensor = tensor.reshape(tensor.shape[0], *split, *tensor.shape[-2:])
    tensor = tensor.permute(0, 1 + 2 * rank, *axes, 2 + 2 * rank)
    return tensor.reshape(*tensor.shape[:2], math.prod(tokens), tensor.shape[-1]).contiguous()


def block_mask(tokens, window, tile, stride=None):
    stride = stride or (1,) * len(tokens)

    def position(index, axis):  # of a token along an axis, from its place among the tiles
        inner = index % TILE // math.prod(tile[axis + 1:]) % tile[axis]
        tiles = [n // t for n, t in zip(tokens, tile)]
        return index // TILE // math.prod(tiles[axis + 1:]) % tiles[axis] * tile[axis] + inner

    def sees(query, key, axis):
        leader = query // stride[axis] * stride[axis] + stride[axis] // 2
        begin = leader.clamp(max=tokens[axis] - 1) - window[axis] // 2
        begin = begin.clamp(0, tokens[axis] - window[axis])
        return (begin <= key) & (key < begin + window[axis])

    def mask_mod(batch, head, query, key):
        seen = sees(position(query, 0), position(key, 0), 0)
        for axis in range(1, len(tokens)):
            seen = seen & sees(position(query, axis), position(key, axis), axis)
        return seen

    some = every = torch.ones(1, 1, dtype=torch.bool, device="cuda")
    for axis, (n, t) in enumerate(zip(tokens, tile)):
        at = torch.arange(n, device="cuda")
        pairs = sees(at[:, None], at, axis).view(n // t, t, n // t, t)
        some = torch.kron(some.byte(), pairs.amax((1, 3)).byte()).bool()
        every = torch.kron(every.byte(), pairs.amin((1, 3)).byte()).bool()

    def listed(blocks):  # those of each row of tiles first
        order = blocks.byte().argsort(dim=1, descending=True, stable=True)
        return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]

    return BlockMask.from_kv_blocks(*listed(some & ~every), *listed(every), BLOCK_SIZE=TILE,
                                    mask_mod=mask_mod)  # fmt: skip


def call(tensors, window, stride=None):
    """The forward of query, key and value; None if the tokens make no whole tiles of TILE."""
    tokens = tensors[0].shape[1:-2]
    tile = {1: (TILE,), 2: (8, 16), 3: (2, 8, 8)}[len(tokens)]
    if any(n % t for n, t in zip(tokens, tile)):
        return None
    torch._dynamo.reset()  # else it stops compiling after some problems
    flex = torch.compile(flex_attention, dynamic=False)
    mask = block_mask(tokens, window, tile, stride)
    query, key, value = (tiled(tensor, tile) for tensor in tensors)

    def run():
        return flex(query, key, value, block_mask=mask)

    run.tiled = lambda tensor: tiled(tensor, tile)
    return run


def rows_of(tokens, window, tile, heads, head_dim, seconds):
    import vecina.torch  # hopper.py does without

    torch.manual_seed(0)
    shape = (1, *tokens, heads, head_dim)
    query, key, value, gradient = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)
    )
    ours = [tensor.requires_grad_() for tensor in (query, key, value)]
    theirs = [tiled(tensor.detach(), tile).requires_grad_() for tensor in ours]
    mask, flex = block_mask(tokens, window, tile), torch.compile(flex_attention, dynamic=False)
    attend = {
        "vecina": lambda: vecina.torch.neighborhood_attention(*ours, window),
        "flex": lambda: flex(*theirs, block_mask=mask),
    }
    outputs = {name: call() for name, call in attend.items()}
    gradients = {"vecina": gradient, "flex": tiled(gradient, tile)}
    inputs = {"vecina": ours, "flex": theirs}

    def with_gradients(name):
        return torch.autograd.grad(outputs[name], inputs[name], gradients[name], retain_graph=True)

    def forward(name):
        with torch.no_grad():
            return attend[name]()

    def results(name, label):
        return (outputs[name],) if label == "forward" else with_gradients(name)

    for label, run in (
        ("forward", forward),
        ("backward", with_gradients),
        ("backward in any order", with_gradients),
    ):
        vecina.torch.allow_nondeterministic_backward("any" in label)
        found = (results(name, label) for name in attend)
        differences = [
            ((tiled(mine.detach(), tile) - other).abs().max() / other.abs().max()).item()
            for mine, other in zip(*found)
        ]
        turns = {name: [] for name in attend}
        for name in (*attend, *attend):
            turns[name].append(gpu.steady_ms(lambda: run(name), seconds))
        best = {name: min(ms) for name, ms in turns.items()}
        yield dict(tokens=tokens, window=window, heads=heads, head_dim=head_dim, dtype="bf16",
                   what=label, ratio=best["flex"] / best["vecina"], ms=turns,
                   differences=differences)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5)
    seconds = parser.parse_args().seconds
    rows = [row for problem in PROBLEMS for row in rows_of(*problem, seconds)]
    print(json.dumps({**gpu.conditions(), "rows": rows}, indent=1))
    return any(difference > MAX_DIFFERENCE for row in rows for difference in row["differences"])


if __name__ == "__main__":
    sys.exit(main())
