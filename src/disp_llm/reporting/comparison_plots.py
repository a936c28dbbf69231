"""A comparison of methods as a plot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from disp_llm.reporting.canvas import OTHERS, PRUNED, mark_dense, panels, save
from disp_llm.reporting.reading import comparison_figures
from disp_llm.runs.naming import name_of
from disp_llm.runs.results import ComparisonRow

MARKERS = "os^vDP*"
"""One fewer than the colours, so that no two methods look alike."""

OURS = {
    "learned": 2.8,
    "domain": 1.6,
    "masks_and_scales": 1.6,
    "coupled": 1.6,
    "masks_only": 1.6,
}
"""Methods of this package, and how thick their lines are."""

CEILING = 100
"""Times the original's perplexity; what is worse is named and not drawn."""


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Perplexity against stored block parameters and, where models were timed, against the time
    of a prefill; a line for each method, the best at the smallest size first in the legend.

    Args:
        result: what `compare.json` holds.

    Raises:
        InputError: the file cannot be written.
    """
    found = comparison_figures(result)
    assert found.dense is not None
    dense, made = found.dense.perplexity, [row for row in found.rows if row.error is None]
    drawn = [row for row in made if _value(row) <= CEILING * dense]
    last = {row.method: _value(row) for row in sorted(drawn, key=lambda r: -(r.keep or 0))}
    beyond = {row.method: None for row in made if row.method not in last}
    scales = _scales(drawn)
    figure, axes = panels(3.4 + 4.6 * len(scales), 5.2, len(scales))
    for axis, (label, place_of) in zip(axes, scales.items(), strict=True):
        _draw_methods(axis, drawn, sorted(last, key=last.__getitem__), place_of)
        mark_dense(axis, dense, max(map(_value, drawn), default=dense))
        axis.set_xlabel(label)
    axes[0].set_ylabel("perplexity")
    worse = f"; above {CEILING} times the original: {', '.join(beyond)}" if beyond else ""
    figure.suptitle(f"{name_of(found.asked.model)}{worse}", fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(figure, path)


def _value(row: ComparisonRow) -> float:
    assert row.perplexity is not None, row
    return row.perplexity


def _scales(rows: list[ComparisonRow]) -> dict[str, Callable[[ComparisonRow], float]]:
    """What perplexity is drawn against: a label, and the place of a row."""
    found: dict[str, Callable[[ComparisonRow], float]] = {
        "numbers stored in the blocks, millions": lambda row: (row.block_parameters or 0) / 1e6
    }
    if any(row.speed for row in rows):
        by_time = "prefill of 512 tokens, time as a share of the original's"
        found[by_time] = lambda row: 1 / row.speed["prefill_speedup"]
    return found


def _draw_methods(
    axes: Any,
    rows: list[ComparisonRow],
    methods: list[str],
    place_of: Callable[[ComparisonRow], float],
) -> None:
    """A line for each method."""
    for place, method in enumerate(methods):
        found = sorted((r for r in rows if r.method == method), key=lambda row: row.keep or 0)
        ours = method in OURS
        axes.plot(
            [place_of(row) for row in found], [_value(row) for row in found],
            marker=MARKERS[place % len(MARKERS)], markersize=7 if method == "learned" else 4,
            label=method, color=PRUNED if ours else OTHERS[place % len(OTHERS)],
            linestyle="-" if ours else (0, (4, 1 + place % 3)),
            linewidth=OURS.get(method, 1.0), zorder=3 if ours else 2,
        )  # fmt: skip
