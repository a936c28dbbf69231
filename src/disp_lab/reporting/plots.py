"""A comparison as plots: quality over size, time and memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_lab.names import ORIGINAL, OURS
from disp_lab.reporting.canvas import (
    GREY,
    OTHERS,
    PRUNED,
    End,
    logarithmic,
    name_lines,
    panels,
    save,
)
from disp_lab.reporting.frontier import COSTS, KEEP, Cost, Frontier, Point
from disp_lab.results import of_sizes
from disp_llm.config.names import name_of

MARKERS = "os^vDP*"
"""Markers of others, one fewer than their colours, so that no two methods look alike."""

OUR_MARKERS = "o*Dhp8"

CEILING = 100
"""Largest multiple of the original's quality to draw; methods with worse models are named."""


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Draws quality over the share of block parameters and, if models were timed, over prefill
    time, for the unquantised rows of `compare.json` whose size is a share of block parameters."""
    frontier = Frontier.of(result)
    frontier = Frontier(replace(frontier.found, rows=of_sizes(frontier.found.rows)))
    draw_costs(frontier, [KEEP, *(cost for cost in COSTS[:1] if frontier.points(cost))], path)


def draw_frontier(result: dict[str, Any], path: Path) -> None:
    """Draws quality over every cost that was measured, and the front of each."""
    frontier = Frontier.of(result)
    draw_costs(frontier, [cost for cost in COSTS if frontier.points(cost)], path, fronts=True)


def draw_costs(frontier: Frontier, costs: list[Cost], path: Path, fronts: bool = False) -> None:
    """Draws one panel per cost, one below the other, with a named line for each method."""
    original = frontier.of_original
    figure, axes = panels(7.4, 3.6 * len(costs), frontier.value_name, len(costs))
    methods = list(dict.fromkeys(row.method for row in frontier.rows))
    beyond: dict[str, None] = {}
    for axis, cost in zip(axes, costs, strict=True):
        points = frontier.points(cost)
        drawn = [point for point in points if point.value <= CEILING * original]
        beyond |= dict.fromkeys(point.row.method for point in points if point not in drawn)
        ends = [
            end
            for method in methods
            for end in _draw_method(
                axis, cost, [p for p in drawn if p.row.method == method], _look(method, methods)
            )
        ]
        if fronts:
            _draw_front(axis, cost, [p for p in frontier.front(cost) if p in drawn])
        axis.axhline(original, color=GREY, linewidth=1, linestyle="--")
        axis.set_xlabel(cost.label)
        logarithmic(axis)
        axis.margins(y=0.1)
        name_lines(axis, ends)
    worse = f"; above {CEILING} times the original, some of {', '.join(beyond)}" if beyond else ""
    steps = "; hollow: quantised; grey steps: the front" * fronts
    figure.suptitle(f"{name_of(frontier.found.asked.model)}{steps}{worse}", fontsize=9)
    save(figure, path)


def _draw_method(axis: Any, cost: Cost, points: list[Point], look: tuple[str, str]) -> list[End]:
    """Draws a method's sizes as a line, and its quantised models as hollow marks with names.
    Returns the method's name with its place."""
    if not points:
        return []
    color, marker = look
    method = points[0].row.method
    is_ours = method in OURS
    plain = sorted((p for p in points if not p.row.weights), key=lambda p: p.row.keep or 0)
    axis.plot(
        [cost.shown(p.cost) for p in plain], [p.value for p in plain],
        label=method, color=color, marker=marker, markersize=6, linewidth=1.8 if is_ours else 1,
        linestyle="-" if is_ours else (0, (4, 2)), zorder=3 if is_ours else 2,
    )  # fmt: skip
    packed = [p for p in points if p.row.weights]
    axis.plot(
        [cost.shown(p.cost) for p in packed], [p.value for p in packed],
        label=f"{method}, quantised", color=color, marker=marker, markersize=7,
        markerfacecolor="white", linestyle="", zorder=4,
    )  # fmt: skip
    for point in packed:
        axis.annotate(
            point.row.weights, (cost.shown(point.cost), point.value),
            xytext=(5, 4) if is_ours else (5, -10),
            textcoords="offset points", fontsize=8, color=color,
        )  # fmt: skip
    if not plain:
        return []
    return [(cost.shown(plain[0].cost), plain[0].value, SHOWN.get(method, method), color)]


SHOWN = {"learned": "ours", "latency": "ours, time as the budget"}
"""Names of our methods in pictures."""


def _look(method: str, methods: list[str]) -> tuple[str, str]:
    """Returns colour and marker: one colour for ours, grey for the original, others their own."""
    if method == ORIGINAL:
        return GREY, "s"
    if method in OURS:
        ours = [name for name in methods if name in OURS]
        return PRUNED, OUR_MARKERS[ours.index(method) % len(OUR_MARKERS)]
    others = [name for name in methods if name not in (*OURS, ORIGINAL)]
    place = others.index(method)
    return OTHERS[place % len(OTHERS)], MARKERS[place % len(MARKERS)]


def _draw_front(axis: Any, cost: Cost, front: list[Point]) -> None:
    """Draws the front as steps: the best quality available at each cost."""
    if front:
        axis.step(
            [cost.shown(p.cost) for p in front], [p.value for p in front],
            where="post", color="#222222", linewidth=2.5, alpha=0.25, zorder=1, label="the front",
        )  # fmt: skip
