"""What commands that measure print."""

from disp_llm.reporting.measurements import show_bench


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
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "small against large, bfloat16, compiled, EPYC"
    (names,) = [line for line in said if line.startswith("work ")]
    assert names == "work original pruned speed-up counted tokens/s"
    (row,) = [line for line in said if "×" in line]
    assert row.endswith("64.00 ± 0.20 ms 40.00 ± 0.20 ms ×1.60 (1.50 to 1.75) ×1.90 12,800")
    assert said[-3:] == [
        "load time: 1.2 -> 0.5 s",
        "peak memory: 540.0 -> 320.0 MB",
        "weights on disk: 270.0 -> 160.0 MB",
    ]
