"""What all plots share: empty figures, colours, logarithmic axes, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from disp_llm.runs.files import atomic
from disp_llm.runs.ownership import PICTURES

DENSE, PRUNED, COUNTED = "#8a8f98", "#0b6e99", "#d9a441"
"""Colours of the original, of the pruned model, and of what is counted and not measured."""

OTHERS = ("#b3572a", "#6a51a3", "#2f8f5b", "#c2418d", "#8c6d1f", "#4f6d8f", "#a33b3b", "#5b8c2a")
"""Colours of all further lines."""


def canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches, drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(width: float, height: float, values: Sequence[str] = ("",)) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and the axes of its panels.

    Args:
        values: what each panel shows; those that show the same share its scale, which is labelled
            once.
    """
    figure, axes = canvas(width, height), []
    first: dict[str, Any] = {}
    for place, name in enumerate(values, start=1):
        axis = figure.add_subplot(1, len(values), place, sharey=first.get(name))
        axis.spines[["top", "right"]].set_visible(False)
        if name in first:
            axis.tick_params(labelleft=False)
        else:
            first[name] = axis
            axis.set_ylabel(name)
        axes.append(axis)
    return figure, axes


def logarithmic(axes: Any, low: float, high: float) -> None:
    """A logarithmic axis of perplexities with round numbers on it."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(round_numbers(low, high))


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers between two, of a logarithmic axis: the fewer the longer it is."""
    from matplotlib.ticker import MaxNLocator

    steps = (1, 1.5, 2, 3, 4, 6, 8) if high < 15 * low else (1, 3)
    every = (step * 10**power for power in range(6) for step in steps)
    found = [number for number in every if low <= number <= high]
    if len(found) > 1:
        return found
    return [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def save(figure: Any, path: Path) -> None:
    """Writes the figure, whole or not at all, in the format of the file's suffix."""
    kind = path.suffix[1:]
    signed = {"Creator" if kind == "svg" else "Software": "disp-llm"}
    with atomic(path, PICTURES[path.suffix]) as temporary:
        figure.savefig(temporary, format=kind, dpi=160, metadata=signed)
