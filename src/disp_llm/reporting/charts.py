"""A run's loss -> a chart as SVG, drawn in the colours of the page and with its text."""

import io
import re
from dataclasses import dataclass

from disp_llm.reporting.run_data import RunData

SMOOTH = 0.9
"""Memory of the moving average that is drawn over the loss of single windows."""

COLOURS = {"#00000f": "soft", "#0000f0": "line", "#0000f1": "accent"}
"""Stand for colours that the page has by name, light or dark."""

SOFT, GRID, LINE = COLOURS

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loss",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": SOFT,
    "grid.color": GRID,
}


@dataclass(frozen=True)
class Chart:
    """One picture; `description` says it in words."""

    description: str
    box: str
    svg: str
    """What stands inside the `svg` element, whose view box is `box`."""


def learning_chart(run: RunData) -> Chart | None:
    """The smoothed loss against tokens; None where nothing has been learned."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if len(run.metrics) < 2:
        return None
    means = [run.metrics[0].loss]
    for step in run.metrics[1:]:
        means.append(SMOOTH * means[-1] + (1 - SMOOTH) * step.loss)
    drawn = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", linewidth=0.8)
        axes.plot([step.tokens for step in run.metrics], means, color=LINE, linewidth=1.4)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel("tokens")
        unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsigned)
    text = drawn.getvalue()
    for colour, name in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    found = re.search(r'<svg[^>]* viewBox="([^"]+)"[^>]*>(.*)</svg>', text, re.DOTALL)
    assert found
    return Chart(f"from {means[0]:.2f} to {means[-1]:.2f}", found[1], found[2])
