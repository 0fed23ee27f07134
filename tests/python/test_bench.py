# SPDX-License-Identifier: MIT
"""python -m vecina.bench: rows, contestants that compute the same, forms of the results."""

import importlib.util
import json
import sys

import pytest

torch = pytest.importorskip("torch")

import vecina  # noqa: E402
from vecina import bench  # noqa: E402
from vecina.bench import agreement, contestants, report, rows  # noqa: E402

SMALL = [
    rows.Row("a", "baseline", "A", "1D", "1d 12 kernel_size 5 batch 2 heads 4 head_dim 8",
             "output"),
    rows.Row(
        "b", "gqa", "B", "2D",
        "2d 6x7 kernel_size 3 batch 1 heads 4 head_dim 8 heads_kv 2 additional 3", "output",
    ),
    rows.Row("c", "fmha", "C", "1D", "1d 8 kernel_size 8 batch 1 heads 2 head_dim 8", "output"),
    rows.Row("d", "return_lse", "D", "1D", "1d 9 kernel_size 3 heads 2 head_dim 8", "with_lse"),
    rows.Row("e", "merge", "E", "1D", "1d 9 kernel_size 3 heads 2 head_dim 8", "merge"),
]  # fmt: skip


# Of the caller's own, and whether natten-mps has such a call.
OWN = {
    "1d 12 kernel_size 5 batch 2 heads 4 head_dim 12 bias": True,
    "2d 9x12 kernel_size 3x5 dilation 2x1 heads 2 head_dim 8 bias": True,
    "2d 6x9 kernel_size 3x4 stride 1x2 dilation 2 causal 0x1 heads 4 heads_kv 2 head_dim 8": False,
    "2d 6x7 kernel_size 5x4 causal heads 2 head_dim 8 head_dim_value 16 additional 3 bias": False,
    "3d 4x5x6 kernel_size 3x5x5 causal 1x0x0 heads 2 head_dim 8 dtype f64": True,
    "3d 3x4x5 kernel_size 2x3x4 heads 2 head_dim 8 bias dtype bf16": False,
    "1d 14 kernel_size 14 causal batch 2 heads 2 head_dim 8 dtype f16": True,
    "2d 4x5 kernel_size 4x5 heads 2 head_dim 8 additional 2 bias": False,
}


def test_rows_are_the_seeds():
    found = rows.rows()
    assert len(found) == 21 and len({row.name for row in found}) == 21
    assert {row.feature for row in found} == set(rows.features())
    assert [row.name for row in rows.rows(["merge"])] == ["merge2_1d_L256", "merge2_2d_32x32"]
    for row in found:
        assert not vecina.why_not("reference", row.problem)  # a line that the library reads
    by_name = {row.name: row for row in found}
    assert by_name["bf16_gqa4_1d_L256_K7"].dtype == "bfloat16"
    assert by_name["bf16_gqa4_1d_L256_K7"].number("heads_kv", 0) == 2
    assert by_name["fmha_2d_16x16_Kfull"].is_dense and not by_name["lse_1d_L256_K7"].is_dense


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_contestants_compute_the_same(row):
    inputs = contestants.draw(row)
    wanted = contestants.find("reference")(row, inputs)()
    assert isinstance(wanted, tuple) == (row.kind != "output")
    ported = ("natten-mps",) if importlib.util.find_spec("natten_mps") else ()
    for name in ("cpu", "sdpa", "flex", *ported):
        if name in ("sdpa", "flex") and row.kind != "output":
            with pytest.raises(contestants.Unavailable, match="no lse"):
                contestants.find(name)(row, inputs)
            continue
        if name == "flex":  # a minute of compilation: by hand
            continue
        torch.testing.assert_close(contestants.find(name)(row, inputs)(), wanted)


@pytest.mark.parametrize("line, ported", OWN.items())
def test_own_problems_are_the_same_for_all(line, ported):
    row = rows.row_of(line)
    inputs = contestants.draw(row)
    wanted = agreement.kept(contestants.find("reference")(row, inputs)())
    for name in ("cpu", "sdpa"):
        result = agreement.kept(contestants.find(name)(row, inputs)())
        assert agreement.why_not_same(result, wanted, row.dtype) == ""
    if not importlib.util.find_spec("natten_mps"):
        return
    if not ported:
        with pytest.raises(contestants.Unavailable, match="natten-mps"):
            contestants.find("natten-mps")(row, inputs)
        return
    call = contestants.find("natten-mps")(row, inputs)
    assert agreement.why_not_same(agreement.kept(call()), wanted, row.dtype) == ""
    assert hasattr(call, "note") == row.has_bias


def test_a_problem_line_is_a_row():
    row = rows.row_of("  2d 8x9  kernel_size 3x5 heads 2 head_dim 8 causal 0x1 dilation 2x1 bias ")
    line = "2d 8x9 kernel_size 3x5 heads 2 head_dim 8 causal 0x1 dilation 2x1 bias"
    assert row.name == row.problem == line
    assert row.axes("kernel_size", 0) == (3, 5) and row.axes("stride", 1) == 1
    assert row.is_causal == (False, True) and row.has_bias and row.dtype_word == "f32"
    assert rows.row_of("1d 9 kernel_size 9 head_dim 8 causal").is_full
    assert not rows.row_of("1d 9 kernel_size 9 head_dim 8 causal 1").is_dense
    assert rows.row_of("1d 9 kernel_size 9 causal 0 head_dim 8 dtype f64").is_dense
    for line, words in (
        ("", "begins with 1d"),
        ("2d 8x8 kernel_size 9 head_dim 8", "exceeds the 8 tokens"),
        ("1d 8 kernel_size 3 head_dim 8 lengths padded", "'lengths' is not compared"),
        ("attention 8x8 head_dim 8", "'attention' is not compared"),
        ("1d 8 kernel_size 3 head_dim 8 batch 0", "batch 0 leaves nothing to time"),
    ):
        with pytest.raises(ValueError, match=words):
            rows.row_of(line)


def test_masks_that_are_too_large_are_not_made():
    row = rows.row_of("2d 256x256 kernel_size 3 head_dim 1")
    with pytest.raises(contestants.Unavailable, match="65536 x 65536 numbers is not made"):
        contestants.find("sdpa")(row, contestants.draw(row))
    row = rows.row_of("1d 16384 kernel_size 3 heads 8 head_dim 1 bias")
    with pytest.raises(contestants.Unavailable, match="8 x 16384 x 16384"):
        contestants.find("sdpa")(row, contestants.draw(row))


def test_who_computes_something_else_is_not_timed(monkeypatch):
    row = rows.row_of("1d 12 kernel_size 5 heads 2 head_dim 8")

    def more(row, inputs):
        call = contestants.find("cpu")(row, inputs)
        return lambda: call() * 1.01

    def less(row, inputs):
        call = contestants.find("cpu")(row, inputs)
        return lambda: call()[:, :-1]

    def none(row, inputs):
        call = contestants.find("cpu")(row, inputs)
        return lambda: call() * float("nan")

    def failing(row, inputs):
        raise RuntimeError("the first line\nand another")

    def silent(row, inputs):
        raise ValueError

    others = {"more": more, "less": less, "none": none, "silent": silent, "failing": failing}
    monkeypatch.setattr(contestants, "_OTHERS", others)
    found, reasons = bench.measure(["cpu", *others], [row], 0, 1)
    assert [name for name, times in found[0].times.items() if times] == ["cpu"]
    words = (
        "differs by 0.01 of", "shapes are [[1, 11, 2, 8]], not", "differs by nan", "ValueError",
        "first line",
    )  # fmt: skip
    assert len(reasons) == len(words)
    for reason, name, word in zip(reasons, others, words):
        assert reason.startswith(f"n/a on {name}: {row.name}: ") and word in reason
    assert reasons[-1].endswith("the first line")


def test_problems_of_the_command_line(capsys, tmp_path):
    path = tmp_path / "now.json"
    lines = "1d 16 kernel_size 3 head_dim 8 bias", "2d 4x4 kernel_size 3 head_dim 8 dtype f64"
    arguments = [word for line in lines for word in ("--problem", line)]
    assert bench.main([*arguments, "--repeats", "1", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(line in shown for line in lines)
    written = json.loads(path.read_text())
    assert [item["name"] for item in written] == [item["problem"] for item in written] == [*lines]
    assert [item["dtype"] for item in written] == ["f32", "f64"]
    assert all(item["cpu_ms"] > 0 and item["sdpa_ms"] > 0 for item in written)


def test_who_is_not_there_says_so():
    with pytest.raises(ValueError, match="'nobody' is none of cpu, "):
        contestants.find("nobody")
    inputs = contestants.draw(SMALL[0])
    import vecina.compat

    for name in ("natten", "natten-mps", "natten-mlx"):
        module = name.replace("-", "_")
        if importlib.util.find_spec(module) is None:
            with pytest.raises(contestants.Unavailable, match="cannot be imported"):
                contestants.find(name)(SMALL[0], inputs)
            vecina.compat.install(module)
            try:
                with pytest.raises(contestants.Unavailable, match="vecina.compat's"):
                    contestants.find(name)(SMALL[0], inputs)
            finally:
                for key in [k for k in sys.modules if k.partition(".")[0] == module]:
                    del sys.modules[key]


def test_natten_mps_runs_on_metal_where_it_is():
    class Port:
        has_metal = staticmethod(lambda: True)

    assert contestants._backend_of(Port) == ("metal", "mps")
    Port.has_metal = staticmethod(lambda: False)
    assert contestants._backend_of(Port) == ("pure", "cpu")


def test_a_call_waits_for_its_device(monkeypatch):
    done = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: done.append("waited"))

    def call():
        done.append("called")
        return 7

    assert contestants._waiting(call, "mps")() == 7 and done == ["called", "waited"]
    assert contestants._waiting(call, "cpu") is call


def test_times_and_winner():
    times = report.Times.of([4.0, 1.0, 2.0, 3.0])
    assert (times.median_ms, times.min_ms, times.spread) == (3.0, 1.0, 2 / 3)
    result = report.Result(SMALL[0], {"cpu": times, "sdpa": report.Times(6.0, 6.0, 0.0)})
    assert result.winner == "cpu" and result.ratio == 2.0
    alone = report.Result(SMALL[0], {"cpu": times, "sdpa": None})
    assert alone.winner is None and alone.ratio is None


def test_table_and_json(capsys, tmp_path):
    path = tmp_path / "now.json"
    arguments = ["--features", "fmha", "return_lse", "--warmup", "1", "--repeats", "2"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "1D L=16 full" in text and "n/a on sdpa: torch's" in text
    written = json.loads(path.read_text())
    assert [item["name"] for item in written] == [r.name for r in rows.rows(["return_lse", "fmha"])]
    for item in written:
        assert item["cpu_ms"] > 0 and item["dim"] in ("1d", "2d") and item["dtype"] == "f32"
        assert (item["sdpa_ms"] is None) == (item["feature"] == "return_lse")
        if item["sdpa_ms"]:
            pair = item["cpu_ms"], item["sdpa_ms"]
            assert item["ratio"] == max(pair) / min(pair)
            assert item[item["winner"] + "_ms"] == min(pair)
    assert bench.main([*arguments, "--backends", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == len(written) and "Feature" in captured.err


def test_plot(capsys, tmp_path):
    path = tmp_path / "bars.png"
    arguments = ["--features", "fmha", "--warmup", "0", "--repeats", "1", "--plot", str(path)]
    if importlib.util.find_spec("matplotlib"):
        assert bench.main(arguments) == 0
        assert path.read_bytes()[:4] == b"\x89PNG"
    else:
        assert bench.main(arguments) == 2
        assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--backends", "nobody"], "'nobody' is none of"),
        (["--repeats", "0"], "--repeats 0"),
        (["--problem", "2d 8x8"], "'kernel_size' must be given"),
        (["--problem", "1d 8 kernel_size 3 head_dim 8", "--features", "gqa"], "excludes"),
    ],
)
def test_wrong_arguments(capsys, arguments, words):
    assert bench.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensors_of_a_gpu_that_is_not_there(capsys):
    assert bench.main(["--device", "cuda"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_graphs_are_for_gpus(capsys):
    assert bench.main(["--graph"]) == 2
    assert "--graph needs --device cuda" in capsys.readouterr().err


def test_overhead(capsys):
    assert bench.main(["--overhead", "--calls", "20", "--json"]) == 0
    times = json.loads(capsys.readouterr().out)
    assert len(times) == 6
    for name in ("na1d", "na1d with autograd"):
        found = times[name]
        for part in ("read the tensors", "allocate the outputs"):
            assert found["lines"][part] > 0
        assert found["sum"] == pytest.approx(sum(found["lines"].values()))
        around = found["around the extension, more than alone"]
        assert found["sum"] + around == pytest.approx(found["total"])
        kernel = found["beyond"] - found["beyond, up to the kernel"]
        assert found["beyond"] < found["total"] and kernel == pytest.approx(times["kernel"])
    assert bench.main(["--overhead", "--calls", "5"]) == 0
    assert capsys.readouterr().out.count("  = sum") == 2
