# SPDX-License-Identifier: MIT
"""The examples run and do what they say."""

import importlib.util
import pathlib

import pytest

pytest.importorskip("torch")


def example(name):
    path = pathlib.Path(__file__).parents[2] / "examples" / "python" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dinat", "music"])
def test_two_ways_agree(name):
    assert example(name).main() < 1e-4


def test_denoiser_learns(tmp_path):
    path = tmp_path / "denoised.pgm"
    error, before = example("denoise").train(25, str(path), batch=2)
    assert error < 0.6 * before
    content = path.read_bytes()
    assert content.startswith(b"P5 64 96 255\n") and len(content) == 13 + 64 * 96
