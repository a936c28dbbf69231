"""Draws the chart of README.md, docs/equal-tokens.png, from the rows of its table.

`make tables` draws it with the tables.
"""

from pathlib import Path

from comparison_tables import SIZES, Row, original_perplexity, readme_rows

from disp_llm.reporting.canvas import panels

OURS, OTHERS = "#0b6e99", "#5a5a5a"
MARKERS = "osD^v"
TICKS = (20, 30, 40, 50, 60, 80)


def draw_equal_tokens(path: Path) -> None:
    """Perplexity against keep, a line for each row; a method with one size is a point."""
    original = original_perplexity()
    figure, (axes,) = panels(7.2, 3.6, ("WikiText-2 perplexity, log scale",))
    for marker, row in zip(MARKERS, readme_rows(), strict=True):
        _draw(axes, row, marker)
    axes.axhline(original, color="#999999", linestyle="--", linewidth=1)
    axes.annotate(
        f"original, {original:.1f}", (0.5, original), xytext=(7, 4), textcoords="offset points",
        fontsize=8, color="#777777",
    )  # fmt: skip
    axes.set_xlim(0.82, 0.39)
    axes.set_xticks([float(size) for size in SIZES])
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("keep: share of block parameters")
    figure.savefig(path, dpi=160)


def _draw(axes, row: Row, marker: str) -> None:
    """One row, with its name beside its smallest size."""
    sizes = [float(size) for size in row.perplexity]
    color = OURS if row.ours else OTHERS
    axes.plot(
        sizes, list(row.perplexity.values()), marker=marker, markersize=5, color=color,
        linewidth=2 if row.ours else 1, linestyle="-" if row.ours else (0, (4, 2)),
    )  # fmt: skip
    axes.annotate(
        f"{row.name.replace('*', '')}, {row.tokens / 1e3:.0f} k tokens",
        (sizes[-1], row.perplexity[SIZES[-1]]), xytext=(7, 0), textcoords="offset points",
        va="center", fontsize=8, color=color,
    )  # fmt: skip
