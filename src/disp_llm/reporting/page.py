"""Writes a run's page, one HTML file without network access, for light, dark, phone, print and
screen reader.

The template `report.html` holds all markup except tables and the chart. All text is escaped, and
the page runs no code and fetches nothing.
"""

import io
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from disp_llm.config.names import name_of
from disp_llm.reporting.run_data import RunData, Step, read_run
from disp_llm.reporting.run_tables import run_table, verdicts
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import PAGE

SMOOTH = 0.9
"""Decay of the exponential moving average by which the loss is smoothed."""

COLOURS = {"#00000f": "soft", "#0000f0": "line", "#0000f1": "accent"}
"""Placeholder colours of the chart, replaced by the page's named colours for light or dark mode."""

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


def write_page(run: Run, path: Path | None = None) -> Path:
    """Writes the page of a run, by default into its folder, and returns the page's path."""
    found = read_run(run)
    source = resources.files("disp_llm.reporting") / "report.html"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"name_of": name_of, "shown": _shown}
    template = environment.from_string(source.read_text(encoding="utf-8"))
    table = run_table(found.figures) if found.figures else None
    told = verdicts(found.figures) if found.figures else []
    path = path or run.page_file
    with atomic(path, PAGE) as temporary:
        text = template.render(
            run=found,
            table=table,
            verdicts=told,
            folder=_a_folder(found),
            chart=loss_chart(found.steps),
        )
        temporary.write_text(text, encoding="utf-8")
    return path


def _a_folder(run: RunData) -> str:
    """Path of one of the run's models, relative to the folder that holds the run; empty if none."""
    figures = run.figures
    if figures is not None and figures.model is not None:
        return f"{run.name}/model"
    if figures is not None and figures.fit is not None and figures.fit.chosen is not None:
        return f"{run.name}/{figures.fit.folder_name}"
    return f"{run.name}/{Path(run.sizes[-1].figures.folder).name}" if run.sizes else ""


def _shown(value: Any) -> Any:
    """Returns a setting's value with paths reduced to their last part."""
    if isinstance(value, list):
        return list(map(_shown, value))
    return name_of(value) if isinstance(value, str) else value


def loss_chart(steps: list[Step]) -> str:
    """Plots the smoothed loss against tokens, as SVG in the page's colours with text as text; empty
    with fewer than two steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if len(steps) < 2:
        return ""
    means = [steps[0].loss]
    for step in steps[1:]:
        means.append(SMOOTH * means[-1] + (1 - SMOOTH) * step.loss)
    drawn = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", linewidth=0.8)
        axes.plot([step.tokens for step in steps], means, color=LINE, linewidth=1.4)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel("tokens")
        unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsigned)
    text = drawn.getvalue()
    for colour, name in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    said = f'role="img" aria-label="Loss, from {means[0]:.2f} to {means[-1]:.2f}"'
    head = re.compile(r'.*?<svg[^>]* viewBox="([^"]+)"[^>]*>', re.DOTALL)
    return head.sub(rf'<svg viewBox="\1" {said}>', text, count=1)
