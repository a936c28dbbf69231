"""Series of numbers -> the geometry of a chart of the page."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from disp_llm.reporting.canvas import round_numbers
from disp_llm.reporting.run_data import RunData

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 52, 34
"""Size of a chart, and the room for its labels, in its own units."""

SMOOTH = 0.9
"""Memory of the moving average that is drawn over the loss of single windows."""

Series = dict[str, list[tuple[float, float]]]
"""Points of every line, by its name."""


@dataclass(frozen=True)
class Line:
    """One series of a chart, in chart units."""

    name: str
    points: str
    marks: list[tuple[float, float, str]]
    """Places with a label, for series of few points."""
    place: int
    """Of its run among all, which gives it its colour in every chart."""


@dataclass(frozen=True)
class Chart:
    """One picture; `description` says it in words."""

    title: str
    description: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...] = ()
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()


def learning_chart(runs: list[RunData]) -> Chart | None:
    """The smoothed loss of every run against tokens; None where nothing has been learned."""
    series: Series = {}
    for run in runs:
        mean, points = None, []
        for step in run.metrics:
            mean = step.loss if mean is None else SMOOTH * mean + (1 - SMOOTH) * step.loss
            points.append((step.tokens, mean))
        if len(points) > 1:
            series[run.name] = points
    if not series:
        return None
    description = "; ".join(
        f"{name}: from {line[0][1]:.2f} to {line[-1][1]:.2f}" for name, line in series.items()
    )
    title = "Loss while masks or weights are learned"
    return _drawn(Chart(title, description, "tokens", "loss, smoothed"), series, runs)


def quality_chart(runs: list[RunData]) -> Chart | None:
    """Perplexity against keep of the sizes of every run; None where nothing has been measured."""
    series: Series = {}
    for run in runs:
        sizes = (size.figures for size in run.sizes)
        points = {size.keep: size.measured.perplexity for size in sizes if size.measured}
        if points and run.dense is not None:
            points[1.0] = run.dense.measured.perplexity
        if len(points) > 1:
            series[run.name] = sorted(points.items())
    if not series:
        return None
    description = "; ".join(
        f"{name}: " + ", ".join(f"{y:.1f} at keep {x:.2f}" for x, y in points)
        for name, points in series.items()
    )
    empty = Chart("Quality against size", description, "keep", "perplexity, logarithmic")
    return _drawn(empty, series, runs, log=True, marks=True)


def _drawn(
    empty: Chart, series: Series, runs: list[RunData], log: bool = False, marks: bool = False
) -> Chart:
    """The chart with its series in chart units.

    Args:
        runs: all of the page.
        log: whether the axis of values is logarithmic.
        marks: whether every point has a mark.
    """
    places = {run.name: place for place, run in enumerate(runs)}
    points = [point for line in series.values() for point in line]
    xs, ys = zip(*points, strict=True)
    scale = math.log if log else float
    low, high = scale(min(ys)), scale(max(ys))
    pad = 0.08 * (high - low or 1)
    low, high = low - pad, high + pad
    place = _placing((min(xs), max(xs)), (low, high), scale)
    bottom, top = (math.exp(low), math.exp(high)) if log else (low, high)
    return replace(
        empty,
        lines=tuple(
            Line(
                name,
                " ".join("{},{}".format(*place(x, y)) for x, y in line),
                [(*place(x, y), f"{y:.1f}") for x, y in line] if marks else [],
                places[name],
            )
            for name, line in series.items()
        ),
        x_ticks=tuple((place(x, ys[0])[0], _short(x)) for x in _ticks(min(xs), max(xs))),
        y_ticks=tuple(
            (place(xs[0], y)[1], _short(y))
            for y in (logarithmic_ticks if log else _ticks)(bottom, top)
        ),
    )


def _placing(
    x_range: tuple[float, float], y_range: tuple[float, float], scale: Callable[[float], float]
) -> Callable[[float, float], tuple[float, float]]:
    """Where a point lies in the chart, whose edges have these (scaled) values."""

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0] or 1)
        up = (scale(y) - y_range[0]) / (y_range[1] - y_range[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - 16), 1),
            round((1 - up) * (HEIGHT - BOTTOM - 8) + 8, 1),
        )

    return place


def _short(number: float) -> str:
    """`0.6`, `45`, `20 k`."""
    return f"{number / 1e3:g} k" if number >= 1e4 else f"{number:g}"


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, of a logarithmic axis."""
    found = [number for number in round_numbers(low, high) if low <= number <= high]
    return found if len(found) > 1 else _ticks(low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
