"""Draws the chart of README.md, docs/lost.png, from the rows of its tables.

`make tables` draws it with the tables.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from comparison_rows import Row, domain_rows, mix_rows, original_perplexity

from disp_lab.reporting.canvas import panels

OURS, OTHERS = "#0b6e99", "#5a5a5a"
MARKERS = "osD^vP"
TITLES = (
    "perplexity / original,\nnew documents of the mix, log scale",
    "WikiText-2 perplexity,\nlearned from WikiText-2, log scale",
)


def draw_lost(path: Path) -> None:
    """What is lost against keep, a line for each row; a method with one size is a point."""
    figure, (general, domain) = panels(11.5, 3.8, TITLES)
    ratios = [
        (row, {float(size): ratio.mean for size, ratio in row.general.items()})
        for row in [*reversed(mix_rows("general")), *mix_rows("equal")]
    ]
    _draw_all(general, ratios, 1.0, (1, 1.25, 1.5, 2, 2.5, 3, 4))
    perplexities = [
        (row, {float(size): found.mean for size, found in row.perplexity.items()})
        for row in domain_rows()
    ]
    _draw_all(domain, perplexities, original_perplexity(), (20, 30, 40, 50, 60, 80))
    figure.savefig(path, dpi=160)


def _draw_all(
    axes, rows: Sequence[tuple[Row, dict[float, float]]], original: float, ticks: Sequence[float]
) -> None:
    """One panel: figures by keep of every row, and where the original is."""
    markers = itertools.cycle(MARKERS)
    heights = apart([figures[min(figures)] for _, figures in rows], 1.055)
    for (row, figures), height in zip(rows, heights, strict=True):
        _draw(axes, row, figures, next(markers), height)
    sizes = sorted({size for _, figures in rows for size in figures}, reverse=True)
    axes.axhline(original, color="#999999", linestyle="--", linewidth=1)
    axes.annotate(
        f"original, {original:.4g}" if original > 1 else "original", (sizes[-1], original),
        xytext=(7, 4), textcoords="offset points", fontsize=8, color="#777777",
    )  # fmt: skip
    axes.set_xlim(sizes[0] + 0.02, sizes[-1] - 0.42)  # names stand beside the smallest size
    axes.set_xticks(sizes)
    axes.set_yscale("log")
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("keep: share of block parameters")


def apart(heights: Sequence[float], factor: float) -> list[float]:
    """The heights of names, moved upwards where one would lie upon the next below it."""
    placed, least = dict[int, float](), 0.0
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        placed[index] = max(heights[index], least)
        least = placed[index] * factor
    return [placed[index] for index in range(len(heights))]


def _draw(axes, row: Row, figures: dict[float, float], marker: str, height: float) -> None:
    """One row, with its name at that height beside its smallest size."""
    color, last, sizes = OURS if row.ours else OTHERS, min(figures), sorted(figures)
    axes.plot(
        sizes, [figures[size] for size in sizes], marker=marker, markersize=5, color=color,
        linewidth=2 if row.ours else 1, linestyle="-" if row.ours else (0, (4, 2)),
    )  # fmt: skip
    axes.annotate(
        f"{row.plain_name}, {row.tokens_said}", (last, height),
        xytext=(7, 0), textcoords="offset points", va="center", fontsize=7.5, color=color,
    )  # fmt: skip
