"""Runs -> charts as SVG, drawn in the colours of the page and with its text."""

import io
import re
from dataclasses import dataclass
from typing import Any

from disp_llm.reporting.run_data import RunData

SMOOTH = 0.9
"""Memory of the moving average that is drawn over the loss of single windows."""

COLOURS = 6
"""Lines of different colours; more of them are dashed."""

SOFT, GRID = "#00000f", "#0000f0"
"""Stand for colours that the page has by name, light or dark."""

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": SOFT,
    "grid.color": GRID,
}

Series = dict[str, list[tuple[float, float]]]
"""Points of every line, by the name of its run."""


@dataclass(frozen=True)
class Chart:
    """One picture; `description` says it in words."""

    title: str
    description: str
    lines: dict[str, int]
    """Every run that is drawn, and its place among all, which gives its colour in every chart."""
    box: str
    svg: str
    """What stands inside the `svg` element, whose view box is `box`."""


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
    said = "; ".join(
        f"{name}: from {line[0][1]:.2f} to {line[-1][1]:.2f}" for name, line in series.items()
    )
    return _chart("Loss while masks or weights are learned", said, series, runs)


def quality_chart(runs: list[RunData]) -> Chart | None:
    """Perplexity against keep for the sizes of every run; None where nothing has been measured."""
    series: Series = {}
    for run in runs:
        sizes = (size.figures for size in run.sizes)
        points = {size.keep: size.measured.perplexity for size in sizes if size.measured}
        if points and run.dense is not None:
            points[1.0] = run.dense.measured.perplexity
        if len(points) > 1:
            series[run.name] = sorted(points.items())
    said = "; ".join(
        f"{name}: " + ", ".join(f"{y:.1f} at keep {x:.2f}" for x, y in points)
        for name, points in series.items()
    )
    return _chart("Perplexity against keep", said, series, runs, by_size=True)


def _chart(
    title: str, said: str, series: Series, runs: list[RunData], by_size: bool = False
) -> Chart | None:
    from matplotlib import rc_context
    from matplotlib.ticker import EngFormatter

    if not series:
        return None
    lines = {run.name: place for place, run in enumerate(runs) if run.name in series}
    with rc_context(STYLE | {"svg.hashsalt": title}):
        figure = canvas(4.2, 2.6)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", linewidth=0.8)
        for name, place in lines.items():
            _draw_line(axes, series[name], place, by_size, alone=len(series) == 1)
        if by_size:
            logarithmic(axes)
            axes.margins(x=0.08, y=0.1)
            axes.set_xlabel("keep: share of block parameters")
        else:
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
            axes.set_xlabel("tokens")
        return Chart(title, said, lines, *_svg(figure))


def _draw_line(
    axes: Any, points: list[tuple[float, float]], place: int, marked: bool, alone: bool
) -> None:
    """A line, with a mark at every point and, of a line that is alone, its value."""
    axes.plot(
        *zip(*points, strict=True), color=_colour(place), linewidth=1.4,
        linestyle="-" if place < COLOURS else "--", marker="o" if marked else "", markersize=4,
    )  # fmt: skip
    for x, y in points if marked and alone else ():
        axes.annotate(f"{y:.1f}", (x, y), xytext=(3, 4), textcoords="offset points")


def _colour(place: int) -> str:
    """Stands for the page's colour of the line at this place."""
    return f"#0000{place % COLOURS + 1:02d}"


def _svg(figure: Any) -> tuple[str, str]:
    """The view box, and what stands in it, with the page's colours by their names."""
    drawn = io.StringIO()
    unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(drawn, format="svg", transparent=True, metadata=unsigned)
    text = re.sub(r' id="\w+_\d+"', "", drawn.getvalue())  # not unique on a page of two
    names = {_colour(place): f"s{place}" for place in range(COLOURS)}
    for colour, name in (names | {SOFT: "soft", GRID: "line"}).items():
        text = text.replace(colour, f"var(--{name})")
    found = re.search(r'<svg[^>]* viewBox="([^"]+)"[^>]*>(.*)</svg>', text, re.DOTALL)
    assert found
    return found[1], found[2]


def canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches, drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def logarithmic(axes: Any) -> None:
    """A logarithmic axis of perplexities with round numbers on it."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
