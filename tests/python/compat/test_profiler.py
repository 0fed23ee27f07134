# SPDX-License-Identifier: MIT
"""natten.profiler's names, options and errors."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from vecina.compat import profiler  # noqa: E402

SMALL = ["-i", "6", "8", "-w", "3", "4", "--dtype", "fp32", "--warmup-steps", "1", "-d", "8"]


def run(*arguments):
    profiler.profile(**vars(profiler.get_args([*SMALL, *arguments])))


def rows_of(text):
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]


def test_table(capsys):
    run("--backprop", "-n", "4", "--heads-kv", "2", "--add-kv", "3", "--dim-value", "4", "-c", "1",
        "0", "-s", "2", "1", "--backend", "cutlass-fna", "--q-tile", "8", "8", "--kv-tile", "8",
        "8", "--persistent", "--schedule", "coop")  # fmt: skip
    text = capsys.readouterr().out
    header, forward, backward, total = rows_of(text)
    assert text.startswith(" ") and "Profiler results" in text.splitlines()[0]
    assert header == ["Framework", "Kernel category", "Arch", "Operation", "# calls", "Runtime"]
    assert forward[:5] == ["vecina", "Neighborhood attention", profiler._device(), "Forward", "1"]
    assert backward[3] == "Backward" and total[3] == "Total"
    assert all(float(row[5].split()[0]) > 0 for row in (forward, backward, total))


def test_installed_names_and_a_problem():
    import vecina.compat

    vecina.compat.install("natten")
    from natten.profiler import do_profile
    from natten.profiling_utils import generate_problem, measure_natten_runtime
    from natten.profiling_utils.formatting import Result

    problem = generate_problem(
        2, 4, (6, 8), 8, (6, 8), (1, 1), (1, 1), torch.float32, None, heads_kv=2
    )
    assert problem.is_self_attn and not problem.has_additional_kv
    assert problem.get_q_tensor_shape(True) == [2, 6, 8, 4, 8]
    assert problem.get_k_tensor_shape(False, flatten=True) == [2, 2, 48, 8]
    assert "heads_kv=2" in repr(problem)
    (result,) = do_profile(problem, warmup_steps=0)
    assert isinstance(result, Result) and result.kernel_type == "Attention"
    assert measure_natten_runtime(problem, 1, disable_backward=False) > 0


def test_times_are_written_with_their_unit():
    result = profiler.Result("a", "b", "c", "d", 1, 2500.0)
    assert result.time_str == "2.500 ms" and sum([result] * 400).time_str == "1.000 s"
    assert result._replace(time_us=3.0).time_str == "3.000 us"


def test_dry_run_lists_tiles(capsys):
    run("--dry-run")
    text = capsys.readouterr().out
    assert "cutlass-fna" in text and "(8, 8)" in text and "hopper-fna" not in text
    assert "vecina plan" in text


def test_pytorchs_own_attention(capsys):
    arguments = profiler.get_args(["-i", "16", "-d", "8", "--dtype", "fp32", "--warmup-steps", "0",
                                   "--backend", "fav2"])  # fmt: skip
    profiler.profile(**vars(arguments))
    assert rows_of(capsys.readouterr().out)[1][:3] == ["PyTorch", "Attention", "fav2"]
    with pytest.raises(NotImplementedError, match="whole input"):
        run("--backend", "fav2")


def test_optimize_says_that_nothing_is_to_be_searched(capsys):
    run("--optimize", "--optimize-warmup-steps", "2", "--backend", "cutlass-fna")
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("Nothing to search") and profiler._device() in first
    assert rows_of(rest)[-1][3] == "Total"


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (["--dry-run", "--optimize"], ValueError, "do not go together"),
        (["--q-tile", "8", "8"], ValueError, "q_tile and kv_tile belong together"),
        (["--backward-kv-tile", "8", "8"], ValueError, "belong together"),
        (["-w", "7", "4"], ValueError, "exceeds the input size"),
        (["-w", "3"], ValueError, "window size"),
        (["-s", "4", "1"], ValueError, "stride"),
        (["--dilation", "3", "1"], ValueError, "dilation"),
        (["--dtype", "e4m3"], NotImplementedError, "8-bit floats"),
        (["--dry-run", "--backend", "cudnn"], ValueError, "a dry run is for"),
        (["--optimize", "--backend", "cudnn"], ValueError, "optimize is for"),
        (["-i", "1", "2", "3", "4"], ValueError, "one, two or three"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        run(*arguments)


def test_causal_flags_are_read():
    assert profiler.get_args([*SMALL, "-c", "0", "True"]).causal == (False, True)
    assert profiler.get_args(SMALL).causal == (False, False)


def test_command_line():
    command = [sys.executable, "-m", "vecina.compat.profiler", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Profiler results" in done.stdout and not done.stderr
