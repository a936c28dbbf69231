"""A benchmark as a plot."""

from pathlib import Path
from typing import Any

from disp_llm.reporting.canvas import COUNTED, DENSE, PRUNED, panels, save
from disp_llm.reporting.reading import bench_figures
from disp_llm.runs.rows import BenchComparison


def draw_bench(result: dict[str, Any], path: Path) -> None:
    """Bars of the measured speed-up under every workload, with what counting predicts beside it.

    Args:
        result: what `disp-llm bench --json` prints.
    """
    found = bench_figures(result, "the benchmark")
    compared = found.comparisons
    figure, (axes,) = panels(1.6 + 1.5 * len(compared), 3.8)
    places = range(len(compared))
    measured = [one.speedup for one in compared]
    below = [one.speedup - one.speedup_quartiles[0] for one in compared]
    above = [one.speedup_quartiles[1] - one.speedup for one in compared]
    axes.bar(
        [place - 0.2 for place in places], measured, 0.38, color=PRUNED, label="measured",
        yerr=[below, above], ecolor="#333333", capsize=3,
    )  # fmt: skip
    axes.bar(
        [place + 0.2 for place in places], [one.predicted_speedup for one in compared], 0.38,
        color=COUNTED, label="counted (FLOPs, bytes read)",
    )  # fmt: skip
    axes.axhline(1, color=DENSE, linewidth=1, linestyle="--")
    for place, value in zip(places, measured, strict=True):
        axes.annotate(f"×{value:.2f}", (place - 0.2, 0.04), ha="center", color="white", fontsize=8)
    axes.set_xticks(list(places), [_label(one) for one in compared])
    axes.set_ylabel("speed-up over the original")
    axes.set_title(f"{found.dtype}, {found.hardware['cpu']}", fontsize=9)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2, fontsize=8)
    save(figure, path)


def _label(comparison: BenchComparison) -> str:
    if comparison.phase == "prefill":
        return f"prefill\n{comparison.length} tokens"
    return f"decode\nbatch {comparison.batch}"
