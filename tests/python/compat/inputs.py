# SPDX-License-Identifier: MIT
"""Random tensors for the tests of vecina.compat."""

import torch


def randn(*shape, seed=0, **keywords):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **keywords)


def qkv(*shape, **keywords):
    return [randn(*shape, seed=seed, **keywords) for seed in (1, 2, 3)]


def heads_first(tensor):
    return tensor.movedim(-2, 1)
