"""A comparison as plots: quality over size, time and memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_lab.names import ORIGINAL, OURS
from disp_lab.reporting.canvas import GREY, OTHERS, PRUNED, logarithmic, panels, save
from disp_lab.reporting.frontier import COSTS, KEEP, Cost, Frontier, Point
from disp_lab.results import of_sizes
from disp_llm.config.names import name_of

MARKERS = "os^vDP*"
"""One fewer than the colours, so that no two methods look alike."""

OUR_MARKERS = "o*Dhp8"

CEILING = 100
"""Times the original's perplexity; what is worse is named and not drawn."""


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Quality over the share of block parameters and, where models were timed, over time, for the
    rows of `compare.json` that were made to a number of parameters."""
    frontier = Frontier.of(result)
    frontier = Frontier(replace(frontier.found, rows=of_sizes(frontier.found.rows)))
    draw_costs(frontier, [KEEP, *(cost for cost in COSTS[:1] if frontier.points(cost))], path)


def draw_frontier(result: dict[str, Any], path: Path) -> None:
    """Quality over every cost that was measured, and the front of each."""
    frontier = Frontier.of(result)
    draw_costs(frontier, [cost for cost in COSTS if frontier.points(cost)], path, fronts=True)


def draw_costs(frontier: Frontier, costs: list[Cost], path: Path, fronts: bool = False) -> None:
    """One panel a cost, with a line for each method."""
    original = frontier.of_original
    figure, axes = panels(1.2 + 2.7 * len(costs), 4.8, [frontier.value_name] * len(costs))
    methods = list(dict.fromkeys(row.method for row in frontier.rows))
    beyond: dict[str, None] = {}
    for axis, cost in zip(axes, costs, strict=True):
        points = frontier.points(cost)
        drawn = [point for point in points if point.value <= CEILING * original]
        beyond |= dict.fromkeys(point.row.method for point in points if point not in drawn)
        for method in methods:
            of_method = [p for p in drawn if p.row.method == method]
            _draw_method(axis, cost, of_method, _look(method, methods))
        if fronts:
            _draw_front(axis, cost, [p for p in frontier.front(cost) if p in drawn])
        axis.axhline(original, color=GREY, linewidth=1, linestyle="--", label="as the original")
        axis.set_xlabel(cost.label, fontsize=9)
    logarithmic(axes[0])
    worse = f"; above {CEILING} times the original, some of {', '.join(beyond)}" if beyond else ""
    figure.suptitle(f"{name_of(frontier.found.asked.model)}{worse}", fontsize=9)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(),
        frameon=False, fontsize=9, loc="outside lower center", ncols=2 * len(costs),
    )  # fmt: skip
    save(figure, path)


def _draw_method(axis: Any, cost: Cost, points: list[Point], look: tuple[str, str]) -> None:
    """The sizes of a method as a line, and what is quantised of them as hollow marks with names."""
    if not points:
        return
    color, marker = look
    method = points[0].row.method
    plain = sorted((p for p in points if not p.row.weights), key=lambda p: p.row.keep or 0)
    axis.plot(
        [cost.shown(p.cost) for p in plain], [p.value for p in plain],
        label=method, color=color, marker=marker, markersize=6, linewidth=1,
        linestyle="-" if method in OURS else (0, (4, 2)), zorder=3 if method in OURS else 2,
    )  # fmt: skip
    packed = [p for p in points if p.row.weights]
    if packed:
        axis.plot(
            [cost.shown(p.cost) for p in packed], [p.value for p in packed],
            label=f"{method}, quantised", color=color, marker=marker, markersize=7,
            markerfacecolor="white", linestyle="", zorder=4,
        )  # fmt: skip
    for point in packed:
        axis.annotate(
            point.row.weights, (cost.shown(point.cost), point.value), xytext=(5, 3),
            textcoords="offset points", fontsize=8, color=color,
        )  # fmt: skip


def _look(method: str, methods: list[str]) -> tuple[str, str]:
    """Colour and marker: ours in one colour, the original in grey, every other in its own."""
    if method == ORIGINAL:
        return GREY, "s"
    if method in OURS:
        ours = [name for name in methods if name in OURS]
        return PRUNED, OUR_MARKERS[ours.index(method) % len(OUR_MARKERS)]
    others = [name for name in methods if name not in (*OURS, ORIGINAL)]
    place = others.index(method)
    return OTHERS[place % len(OTHERS)], MARKERS[place % len(MARKERS)]


def _draw_front(axis: Any, cost: Cost, front: list[Point]) -> None:
    """Steps along what nothing dominates: at each cost the best that can be had."""
    if front:
        axis.step(
            [cost.shown(p.cost) for p in front], [p.value for p in front],
            where="post", color="#222222", linewidth=2.5, alpha=0.25, zorder=1, label="the front",
        )  # fmt: skip
