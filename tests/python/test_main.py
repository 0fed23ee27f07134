# SPDX-License-Identifier: MIT
"""python -m vecina."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import vecina


def run(*arguments, path=""):
    return subprocess.run(
        [sys.executable, "-m", "vecina", *arguments],
        capture_output=True, text=True, env={**os.environ, "PATH": str(path)},
    )  # fmt: skip


def test_what_the_package_has():
    names = [backend["name"] for backend in json.loads(run("info").stdout)["backends"]]
    assert names == [backend["name"] for backend in vecina.info()["backends"]]
    line = "1d 9 head_dim 4 kernel_size 3"
    assert run("window", line, "0", "4").stdout == "3 1 3\n"
    assert run("why-not", "reference", line).stdout == ""
    assert run("why-not", "reference").returncode == run().returncode == 0
    assert "--repeats" in run("bench", "--help").stdout and "why-not" in run("--help").stdout


@pytest.mark.parametrize("arguments, says", [
    (["check"], "usage"), (["window", "1d 9"], "usage"), (["why-not"], "usage"),
    (["window", "1d 9 head_dim 4 kernel_size 30", "0", "0"], "kernel_size 30"),
])  # fmt: skip
def test_wrong_arguments(arguments, says):
    found = run(*arguments)
    assert found.returncode == 2 and says in found.stderr and not found.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_the_command_line_tool_goes_first(tmp_path: pathlib.Path):
    tool = tmp_path / "vecina"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    assert run("check", "--cases 3", path=tmp_path).stdout == "check --cases 3\n"
