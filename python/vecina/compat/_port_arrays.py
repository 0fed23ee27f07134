# SPDX-License-Identifier: MIT
"""What natten-mlx's functions call: vecina.mlx for arrays of MLX, vecina.numpy for NumPy's."""

from __future__ import annotations

import importlib
import sys


def _front_of(array):
    mlx = sys.modules.get("mlx.core")  # who has an array of MLX has imported it
    is_mlx = mlx is not None and isinstance(array, mlx.array)
    return importlib.import_module("vecina.mlx" if is_mlx else "vecina.numpy")


def _chosen(name: str):
    def call(first, *args, **keywords):
        array = first[0] if isinstance(first, (list, tuple)) else first
        return getattr(_front_of(array), name)(first, *args, **keywords)

    call.__name__ = call.__qualname__ = name
    return call


neighborhood_attention = _chosen("neighborhood_attention")
merge_attentions = _chosen("merge_attentions")
qk, av = _chosen("qk"), _chosen("av")


def _gradients(name: str):
    """A function of vecina.numpy that gives arrays by name; of MLX's arrays it gives MLX's."""

    def call(*arguments, **keywords):
        numpy, front = importlib.import_module("vecina.numpy"), _front_of(arguments[0])
        if front is numpy:
            return getattr(numpy, name)(*arguments, **keywords)
        keywords = {n: front._numpy(value) for n, value in keywords.items()}
        found = getattr(numpy, name)(*map(front._numpy, arguments), **keywords)
        return {n: front._mlx(array) for n, array in found.items()}

    return call


qk_backward, av_backward = _gradients("qk_backward"), _gradients("av_backward")
