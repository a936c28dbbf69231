"""Pictures of results, as files."""

from pathlib import Path
from typing import Any

from disp_llm.files import atomic

DENSE, PRUNED, COUNTED = "#8a8f98", "#0b6e99", "#d9a441"


def draw_bench(result: dict[str, Any], path: Path) -> None:
    """Bars of the measured speed-up of every kind of work, with what counting predicts beside it.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compared = result["comparisons"]
    names = [
        f"prefill\n{c['length']} tokens"
        if c["phase"] == "prefill"
        else f"decode\nbatch {c['batch']}"
        for c in compared
    ]
    figure = Figure(figsize=(1.6 + 1.5 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(names))
    measured = [c["speedup"] for c in compared]
    below = [c["speedup"] - c["speedup_quartiles"][0] for c in compared]
    above = [c["speedup_quartiles"][1] - c["speedup"] for c in compared]
    axes.bar(
        [place - 0.2 for place in places], measured, 0.38, color=PRUNED, label="measured",
        yerr=[below, above], ecolor="#333333", capsize=3,
    )  # fmt: skip
    predicted = [c["predicted_speedup"] for c in compared]
    axes.bar(
        [place + 0.2 for place in places], predicted, 0.38, color=COUNTED,
        label="counted (FLOPs, bytes read)",
    )  # fmt: skip
    axes.axhline(1, color=DENSE, linewidth=1, linestyle="--")
    for place, value in zip(places, measured, strict=True):
        axes.annotate(f"×{value:.2f}", (place - 0.2, 0.04), ha="center", color="white", fontsize=8)
    axes.set_xticks(list(places), names)
    axes.set_ylabel("speed-up over the original")
    axes.set_title(f"{result['dtype']}, {result['hardware']['cpu']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2, fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=160)
