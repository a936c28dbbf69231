"""A comparison of methods as a plot."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disp_lab.names import OURS
from disp_lab.reporting.tables import of_sizes
from disp_lab.results import ComparisonRow, OriginalResult, comparison_figures
from disp_llm.reporting.canvas import OTHERS, PRUNED, mark_dense, panels, save
from disp_llm.runs.naming import name_of

MARKERS = "os^vDP*"
"""One fewer than the colours, so that no two methods look alike."""

WIDTHS = {"learned": 2.8}
"""How thick a line is that stands out."""

CEILING = 100
"""Times the original's perplexity; what is worse is named and not drawn."""

STORED = "numbers stored in the blocks, millions"
TIME = "prefill of 512 tokens, time as a share of the original's"
"""What values are drawn against, besides `keep`."""


@dataclass(frozen=True)
class Panel:
    """What is drawn against what."""

    value_name: str
    place_name: str
    value: Callable[[ComparisonRow], float]
    place: Callable[[ComparisonRow], float | None]
    """None where it was not measured."""
    dense: float
    """The value of the original."""

    def holds(self, row: ComparisonRow) -> bool:
        """Whether a row is not too bad to be drawn."""
        return self.value(row) <= CEILING * self.dense


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Perplexity against stored block parameters and, where models were timed, against the time
    of a prefill; a line for each method, the best at the smallest size first in the legend. With
    texts of a suite, `general_ratio` in its place, and perplexity beside it.

    Args:
        result: what `compare.json` holds.

    Raises:
        InputError: the file cannot be written.
    """
    found = comparison_figures(result)
    assert found.dense is not None
    made = [row for row in of_sizes(found.rows) if row.error is None]
    shown = _panels(found.dense, made)
    first, drawn = shown[0], [row for row in made if all(panel.holds(row) for panel in shown)]
    last = {row.method: first.value(row) for row in sorted(drawn, key=lambda r: -(r.keep or 0))}
    beyond = {row.method: None for row in made if row not in drawn}
    figure, axes = panels(3.4 + 4.6 * len(shown), 5.2, [panel.value_name for panel in shown])
    for axis, panel in zip(axes, shown, strict=True):
        _draw_methods(axis, drawn, sorted(last, key=last.__getitem__), panel)
        mark_dense(axis, panel.dense, max(map(panel.value, drawn), default=panel.dense))
        axis.set_xlabel(panel.place_name)
    worse = f"; above {CEILING} times the original, some of: {', '.join(beyond)}" if beyond else ""
    figure.suptitle(f"{name_of(found.asked.model)}{worse}", fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(figure, path)


def _panels(dense: OriginalResult, rows: list[ComparisonRow]) -> list[Panel]:
    """What is drawn of some rows, the figure that counts first."""
    perplexity = Panel("perplexity", STORED, _perplexity, _stored, dense.measured.perplexity)
    ratio = Panel("general_ratio", "keep", _ratio, _keep, 1.0)
    scored = bool(dense.scores and dense.scores.texts)
    first = ratio if scored else perplexity
    found = [first]
    if any(row.speed for row in rows):
        found.append(replace(first, place_name=TIME, place=_time))
    return [*found, replace(perplexity, place_name="keep", place=_keep)] if scored else found


def _perplexity(row: ComparisonRow) -> float:
    assert row.perplexity is not None, row
    return row.perplexity


def _ratio(row: ComparisonRow) -> float:
    assert row.scores is not None, row
    assert row.scores.general_ratio is not None, row
    return row.scores.general_ratio


def _stored(row: ComparisonRow) -> float:
    return (row.block_parameters or 0) / 1e6


def _keep(row: ComparisonRow) -> float:
    assert row.keep is not None, row
    return row.keep


def _time(row: ComparisonRow) -> float | None:
    return 1 / row.speedup["prefill"] if row.speedup else None


def _draw_methods(axes: Any, rows: list[ComparisonRow], methods: list[str], panel: Panel) -> None:
    """A line for each method."""
    for place, method in enumerate(methods):
        found = sorted((r for r in rows if r.method == method), key=lambda row: row.keep or 0)
        found = [row for row in found if panel.place(row) is not None]
        ours = method in OURS
        axes.plot(
            [panel.place(row) for row in found], [panel.value(row) for row in found],
            marker=MARKERS[place % len(MARKERS)], markersize=7 if method == "learned" else 4,
            label=method, color=PRUNED if ours else OTHERS[place % len(OTHERS)],
            linestyle="-" if ours else (0, (4, 1 + place % 3)),
            linewidth=WIDTHS.get(method, 1.6 if ours else 1.0), zorder=3 if ours else 2,
        )  # fmt: skip
