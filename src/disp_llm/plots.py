"""Pictures of results, as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from disp_llm.files import atomic
from disp_llm.masks import STREAM_SITES, Masks

DENSE, PRUNED, COUNTED = "#8a8f98", "#0b6e99", "#d9a441"
LINES = ("#b3572a", "#6a51a3", "#2f8f5b", "#c2418d", "#8c6d1f", "#4f6d8f", "#a33b3b", "#5b8c2a")
"""Of the other methods in a comparison."""

MARKERS = "os^vDP*"
"""One less than colours, so that no two methods look alike."""

OURS = {"learned": 2.8, "coupled": 1.6, "masks_only": 1.6}
"""Methods of this package in a comparison, and how thick their lines are."""

CEILING = 100
"""Times the original's perplexity; what is worse is named and not drawn."""


def _canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches, drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes (of several panels: a list with a shared scale of
    values)."""
    figure = _canvas(width, height)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes if panels > 1 else axes[0]


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=160)


def draw_curve(result: dict[str, Any], path: Path) -> None:
    """Perplexity against keep of one run, with standard errors and the dense model's line.

    Raises:
        InputError: the file cannot be written.
    """
    points, dense = result["curve"], result["dense"]["perplexity"]
    figure, axes = _figure(5.6, 3.8)
    axes.errorbar(
        [point["keep"] for point in points],
        [point["perplexity"] for point in points],
        [point["perplexity_stderr"] or 0 for point in points],
        color=PRUNED, marker="o", markersize=4, capsize=3, label="masks of one run",
    )  # fmt: skip
    for point in points:
        axes.annotate(
            f"{point['perplexity']:.1f}", (point["keep"], point["perplexity"]),
            xytext=(-6, 4), textcoords="offset points", ha="right", fontsize=8,
        )  # fmt: skip
    axes.axhline(dense, color=DENSE, linewidth=1, linestyle="--", label=f"original, {dense:.1f}")
    _logarithmic(axes, dense, max(point["perplexity"] for point in points))
    axes.margins(x=0.09)  # for the first label
    axes.invert_xaxis()
    axes.set_xlabel("keep: share of block parameters")
    axes.set_ylabel("perplexity")
    axes.set_title(result["source"]["model"], fontsize=9)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    _save(figure, path)


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Perplexity against stored block parameters and, where models were timed, against the time
    of a prefill; a line a method, the best at the smallest size first in the legend.

    Raises:
        InputError: the file cannot be written.
    """
    dense = result["dense"]["perplexity"]
    made = [row for row in result["rows"] if row["error"] is None]
    good = [row for row in made if row["perplexity"] <= CEILING * dense]
    last = {row["method"]: row["perplexity"] for row in sorted(good, key=lambda r: -r["keep"])}
    hopeless = {row["method"]: None for row in made if row["method"] not in last}
    timed = any("prefill_ms" in row for row in good)
    panels: list[tuple[str, Callable[[dict], float]]] = [
        ("numbers stored in the blocks, millions", lambda row: row["block_parameters"] / 1e6)
    ]
    if timed:
        by_time = "prefill of 512 tokens, time as a share of the original's"
        panels.append((by_time, lambda row: 1 / row["prefill_speedup"]))
    figure, found = _figure(3.4 + 4.6 * len(panels), 5.2, len(panels))
    axes = found if timed else [found]
    for axis, (label, place_of) in zip(axes, panels, strict=True):
        for place, method in enumerate(sorted(last, key=last.__getitem__)):
            rows = sorted((r for r in good if r["method"] == method), key=lambda row: row["keep"])
            ours = method in OURS
            axis.plot(
                [place_of(row) for row in rows], [row["perplexity"] for row in rows],
                marker=MARKERS[place % len(MARKERS)], markersize=7 if method == "learned" else 4,
                label=method, color=PRUNED if ours else LINES[place % len(LINES)],
                linestyle="-" if ours else (0, (4, 1 + place % 3)),
                linewidth=OURS.get(method, 1.0), zorder=3 if ours else 2,
            )  # fmt: skip
        axis.axhline(
            dense, color=DENSE, linewidth=1, linestyle="--", label=f"original, {dense:.1f}"
        )
        _logarithmic(axis, dense, max((row["perplexity"] for row in good), default=dense))
        axis.set_xlabel(label)
    axes[0].set_ylabel("perplexity")
    beyond = f"; above {CEILING} times the original: {', '.join(hopeless)}" if hopeless else ""
    figure.suptitle(f"{result['asked']['model']}{beyond}", fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    _save(figure, path)


def draw_masks(masks: Masks, path: Path) -> None:
    """The share of every site that every block keeps, and which dimensions of the residual stream
    it reads and writes (the paper's Fig. 6).

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.colors import ListedColormap

    sites, layout = masks.layout.sites, masks.layout
    parts = [part.numpy() for part in layout.split(masks.kept)]
    of_site = {site: parts[place :: len(sites)] for place, site in enumerate(sites)}
    stream = [site for site in STREAM_SITES if site in of_site]
    figure = _canvas(9.6, 6.4)
    grid = figure.add_gridspec(2, len(stream), height_ratios=(1.1, 1))
    shares = figure.add_subplot(grid[0, :])
    shares.spines[["top", "right"]].set_visible(False)
    for site, color in zip(sites, (PRUNED, COUNTED, *LINES), strict=False):
        kept = [part.mean() for part in of_site[site]]
        shares.plot(kept, label=site, color=color, linewidth=1.8, marker="o", markersize=3)
    shares.set_ylim(0, 1)
    shares.set_xlabel("block")
    shares.set_ylabel("share that stays")
    shares.legend(frameon=False, ncols=len(sites), loc="lower center", bbox_to_anchor=(0.5, 1))
    for place, site in enumerate(stream):
        axis = figure.add_subplot(grid[1, place])
        rows = np.stack(of_site[site])
        axis.imshow(
            rows, aspect="auto", interpolation="nearest", cmap=ListedColormap(["white", PRUNED])
        )
        axis.set_title(site, fontsize=9)
        axis.set_xlabel("dimension of the stream")
        axis.set_ylabel("block") if place == 0 else axis.set_yticks([])
    _save(figure, path)


def _logarithmic(axes: Any, low: float, high: float) -> None:
    """A logarithmic axis of perplexities with round numbers on it."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    steps = (1, 1.5, 2, 3, 4, 6, 8) if high < 15 * low else (1, 3)
    ticks = [step * 10**power for power in range(6) for step in steps]
    axes.set_yticks([tick for tick in ticks if low * 0.8 < tick < high * 1.25])


def draw_bench(result: dict[str, Any], path: Path) -> None:
    """Bars of the measured speed-up of every kind of work, with what counting predicts beside it.

    Raises:
        InputError: the file cannot be written.
    """
    compared = result["comparisons"]
    names = [
        f"prefill\n{c['length']} tokens"
        if c["phase"] == "prefill"
        else f"decode\nbatch {c['batch']}"
        for c in compared
    ]
    figure, axes = _figure(1.6 + 1.5 * len(names), 3.8)
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
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2, fontsize=8)
    _save(figure, path)
