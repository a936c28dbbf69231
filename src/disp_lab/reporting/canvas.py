"""What all plots of the lab share: colours, panels, files."""

from pathlib import Path
from typing import Any

from disp_llm.runs.files import atomic

PICTURE = b"Software\0disp-llm"
"""Bytes near the start of every picture of ours; only pictures with them are replaced."""

GREY, PRUNED, COUNTED = "#8a8f98", "#0b6e99", "#d9a441"
"""Colours of the original, of the pruned model, and of what is counted, not measured."""

OTHERS = ("#b3572a", "#6a51a3", "#2f8f5b", "#c2418d", "#8c6d1f", "#4f6d8f", "#a33b3b", "#5b8c2a")
"""Colours of all other lines."""


def canvas(width: float, height: float) -> Any:
    """Returns an empty figure, its size in inches, drawn without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def logarithmic(axes: Any) -> None:
    """Makes the y axis logarithmic, with round numbers on it."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def panels(width: float, height: float, value: str, count: int) -> tuple[Any, list[Any]]:
    """Returns a figure, its size in inches, and the axes of its panels, one below the other, all
    with the y label `value`."""
    figure = canvas(width, height)
    axes = list(figure.subplots(count, squeeze=False)[:, 0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel(value)
    return figure, axes


End = tuple[float, float, str, str]
"""Where a line ends, its name and its colour."""

APART = 0.075
"""Least distance of names beside a panel, as a share of its height."""


def name_lines(axis: Any, ends: list[End]) -> None:
    """Writes line names right of a panel without overlap, each tied to the end of its line."""
    to_panel = axis.transData + axis.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[1])
    places = [float(to_panel.transform(end[:2])[1]) for end in ends]
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + APART)
    highest = 1.0
    for number in reversed(range(len(places))):
        places[number] = min(places[number], highest)
        highest = places[number] - APART
    for (x, y, name, color), place in zip(ends, places, strict=True):
        axis.annotate(
            name, (x, y), xytext=(1.04, place), textcoords="axes fraction", color=color,
            fontsize=9, va="center", annotation_clip=False,
            fontweight="bold" if color == PRUNED else "normal",
            arrowprops={
                "arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def save(figure: Any, path: Path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    with atomic(path, PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": "disp-llm"})
