"""Quality over time and memory, as plots."""

from pathlib import Path
from typing import Any

from disp_lab.names import DENSE as ORIGINAL
from disp_lab.names import OURS
from disp_lab.reporting.frontier import COSTS, Cost, Frontier, Point
from disp_lab.reporting.plots import CEILING, MARKERS
from disp_llm.reporting.canvas import DENSE, OTHERS, PRUNED, logarithmic, panels, save
from disp_llm.runs.naming import name_of

FRONT = "#222222"
"""The line along what nothing dominates."""

OUR_MARKERS = "o*Dhp8"


def draw_frontier(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws quality over each cost into `frontier.png`, and every panel into a file of its own;
    returns all paths.

    Args:
        result: what `compare.json` holds.

    Raises:
        InputError: a file cannot be written.
    """
    frontier = Frontier.of(result)
    costs = [cost for cost in COSTS if frontier.points(cost)]
    pictures = {"frontier": costs} | {f"frontier-{cost.name}": [cost] for cost in costs}
    for name, shown in pictures.items():
        draw_costs(frontier, shown, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pictures]


def draw_costs(frontier: Frontier, costs: list[Cost], path: Path) -> None:
    """One panel a cost: a line for each method, and the front."""
    assert frontier.found.dense is not None
    whole = (
        1.0 if frontier.value_name == "general_ratio" else frontier.found.dense.measured.perplexity
    )
    figure, axes = panels(2.6 + 4.3 * len(costs), 4.6, [frontier.value_name] * len(costs))
    methods = list(dict.fromkeys(row.method for row in frontier.rows))
    highest, beyond = whole, dict[str, None]()
    for axis, cost in zip(axes, costs, strict=True):
        points = frontier.points(cost)
        drawn = [point for point in points if point.value <= CEILING * whole]
        beyond |= dict.fromkeys(point.row.method for point in points if point not in drawn)
        for method in methods:
            _draw_method(axis, [p for p in drawn if p.row.method == method], method, methods)
        _draw_front(axis, [point for point in frontier.front(cost) if point in drawn])
        axis.set_xlabel(cost.label, fontsize=9)
        highest = max([highest, *(point.value for point in drawn)])
    logarithmic(axes[0], whole, highest)
    worse = f"; above {CEILING} times the original, some of {', '.join(beyond)}" if beyond else ""
    figure.suptitle(f"{name_of(frontier.found.asked.model)}{worse}", fontsize=9)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    axes[-1].legend(
        handles.values(), handles.keys(),
        frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5),
    )  # fmt: skip
    save(figure, path)


def _draw_method(axis: Any, points: list[Point], method: str, methods: list[str]) -> None:
    """The sizes of a method as a line, what is quantised of them as hollow marks, the original with
    its names."""
    if not points:
        return
    color, marker = _look(method, methods)
    plain = sorted((p for p in points if not p.row.weights), key=lambda p: p.row.keep or 0)
    axis.plot(
        [p.cost for p in plain], [p.value for p in plain],
        label=method, color=color, marker=marker, markersize=6, linewidth=1,
        linestyle="-" if method in OURS else (0, (4, 2)), zorder=3 if method in OURS else 2,
    )  # fmt: skip
    packed = [p for p in points if p.row.weights]
    if packed:
        axis.plot(
            [p.cost for p in packed], [p.value for p in packed],
            label=f"{method}, quantised", color=color, marker=marker, markersize=7,
            markerfacecolor="white", linestyle="", zorder=4,
        )  # fmt: skip
    for point in packed:
        axis.annotate(
            point.row.weights, (point.cost, point.value), xytext=(5, 3),
            textcoords="offset points", fontsize=7, color=color,
        )  # fmt: skip


def _look(method: str, methods: list[str]) -> tuple[str, str]:
    """Colour and marker: ours in one colour, the original in grey, every other in its own."""
    if method == ORIGINAL:
        return DENSE, "s"
    if method in OURS:
        ours = [name for name in methods if name in OURS]
        return PRUNED, OUR_MARKERS[ours.index(method) % len(OUR_MARKERS)]
    others = [name for name in methods if name not in (*OURS, ORIGINAL)]
    place = others.index(method)
    return OTHERS[place % len(OTHERS)], MARKERS[place % len(MARKERS)]


def _draw_front(axis: Any, front: list[Point]) -> None:
    """Steps along what nothing dominates: at each cost the best that can be had."""
    if front:
        axis.step(
            [p.cost for p in front], [p.value for p in front],
            where="post", color=FRONT, linewidth=2.5, alpha=0.25, zorder=1, label="the front",
        )  # fmt: skip
