"""What commands that measure print."""

import pytest

from disp_llm.reporting.measurements import show_bench, show_evaluation
from disp_llm.reporting.run_tables import show_run
from disp_llm.reporting.tables import Table

SPEEDS = ("ms", "original_ms", "speedup", "speedup_low", "speedup_high")


def said(capsys) -> list[str]:
    """Lines without what aligns them."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def timed(median_s: float) -> dict:
    times = {"median_s": median_s, "spread_s": 0.0004, "tokens_per_s": 512 / median_s}
    return {"phase": "prefill", "length": 512, "batch": 1} | times


def loading(load_s: float, megabytes: int) -> dict:
    held = {"peak_memory_bytes": 2 * megabytes * 10**6, "weight_bytes": megabytes * 10**6}
    return {"load_s": load_s} | held


def test_both_models_of_a_benchmark_stand_side_by_side(capsys):
    compared = {"speedup": 1.6, "speedup_quartiles": [1.5, 1.75], "predicted_speedup": 1.9}
    show_bench(
        {
            "model": "small",
            "against": "large",
            "dtype": "bfloat16",
            "compiled": True,
            "hardware": {"cpu": "EPYC"},
            "results": [timed(0.064), timed(0.04)],
            "comparisons": [compared],
            "loading": [loading(1.25, 270), loading(0.5, 160)],
        }
    )
    lines = said(capsys)
    assert lines[0] == "small against large, bfloat16, compiled, EPYC"
    (names,) = [line for line in lines if line.startswith("work ")]
    assert names == "work original pruned speed-up counted tokens/s"
    (row,) = [line for line in lines if "×" in line]
    assert row.endswith("64.00 ± 0.20 ms 40.00 ± 0.20 ms ×1.60 (1.50 to 1.75) ×1.90 12,800")
    assert lines[-3:] == [
        "load time: 1.2 -> 0.5 s",
        "peak memory: 540.0 -> 320.0 MB",
        "weights on disk: 270.0 -> 160.0 MB",
    ]


def test_accuracies_of_tasks_have_a_row_each_and_an_average(capsys):
    task = {"metric": "acc_norm", "acc_norm": 0.5, "stderr": 0.025, "n": 1172, "shots": 0}
    result = {"model": "small", "parameters": 1234, "block_parameters": 1000, "dtype": "float32"}
    show_evaluation(result | {"tasks": {"arc_easy": task}, "average": 0.5})
    lines = said(capsys)
    assert lines[0] == "small: 1,234 parameters, 1,000 in blocks, float32"
    assert "arc_easy acc_norm 50.0 ± 2.5 % 1,172 0" in lines
    assert lines[-1] == "average of the tasks 50.0 %"


@pytest.mark.parametrize("budget", ["params", "latency"])
@pytest.mark.parametrize(("speedup", "slow"), [(0.5, True), (1.0, True), (1.01, False)])
def test_a_model_that_is_no_faster_is_named(speedup, slow, budget, small_run, capsys):
    """With what to ask for instead, unless that was asked for."""
    speed = {f"{phase}_{name}": 2.0 for phase in ("prefill", "decode") for name in SPEEDS}
    of_prefill = {name: speedup for name in speed if name.startswith("prefill_speedup")}
    models = [
        one | {"speed": speed | (of_prefill if one["size"] == "0.5" else {}), "budget": budget}
        for one in small_run[1]["models"]
    ]
    show_run(small_run[1] | {"models": models})
    lines = said(capsys)
    begins = "no faster than the original on this machine: "
    named = [line.removeprefix(begins) for line in lines if line.startswith(begins)]
    assert [one.split(" prefill ")[1] for one in named] == [f"×{speedup:.2f}"] * slow
    instead = "for time ask for `--budget latency --fit 0.8`"
    assert (instead in lines) == (slow and budget == "params")


def test_columns_of_words_are_on_the_left():
    lines = Table(("a", "b", "c"), [("1", "2", "3")], left=("c",)).markdown()
    assert lines == ["| a | b | c |", "|---|---:|---|", "| 1 | 2 | 3 |"]


def test_columns_of_words_are_on_the_left_of_a_terminal_too(capsys):
    Table(("a", "b", "c"), [("1", "2", "3"), ("long", "long", "long")], left=("c",)).show()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.split() == list("123")]
    assert row.rstrip() == "  1         2   3"
