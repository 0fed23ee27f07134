# SPDX-License-Identifier: MIT
"""The attention of a model that finds beats and sections in music: heads of 12 numbers, a bias.

Spectrograms of several instruments, [batch, instruments, time, dim]. In time, windows of 5 whose
dilation doubles from layer to layer; then a 2-D window over instruments and time. With the logits
in hand, as such models are written, and in one call: the same.
"""

import torch

from vecina.torch import av, na1d, na2d, qk

HEADS, HEAD_DIM, KERNEL = 2, 12, 5


def tensors(*shape):
    return [torch.randn(*shape, HEADS, HEAD_DIM) for _ in range(3)]


def in_time(time: int, dilation: int) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = tensors(4, time)
    bias = torch.randn(HEADS, 2 * KERNEL - 1)
    logits = qk(query, key, KERNEL, dilation=dilation, bias=bias)
    halves = av(logits.softmax(-1), value, KERNEL, dilation=dilation)
    return halves, na1d(query, key, value, KERNEL, dilation=dilation, bias=bias)


def over_instruments_and_time(instruments: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = tensors(1, instruments, time)
    bias = torch.randn(HEADS, 2 * instruments - 1, 2 * KERNEL - 1)
    window = (instruments, KERNEL)  # every instrument, five steps
    logits = qk(query, key, window, bias=bias)
    halves = av(logits.softmax(-1), value, window)
    return halves, na2d(query, key, value, window, bias=bias)


def main() -> float:
    """The largest difference between the halves and the whole."""
    torch.manual_seed(0)
    pairs = [in_time(512, 2**i) for i in range(6)] + [over_instruments_and_time(4, 256)]
    return max((halves - whole).abs().max().item() for halves, whole in pairs)


if __name__ == "__main__":
    print(f"largest difference {main():.1e}")
