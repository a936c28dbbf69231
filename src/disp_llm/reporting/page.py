"""Runs -> one page that stands alone: no network; light, dark, phone, print and screen reader.

Everything is read from run folders. The template `report.html` holds all markup; `run_data` gives
the figures and `charts` the geometry. Whatever was named by its path is shown by its name; whatever
text says is shown as text, and nothing on the page can run or be fetched.
"""

from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from disp_llm.config.names import name_of
from disp_llm.config.report import ReportConfig
from disp_llm.reporting.charts import learning_chart, quality_chart
from disp_llm.reporting.run_data import RunData, SizeData, read_run
from disp_llm.reporting.run_tables import recovery_table, sizes_table
from disp_llm.reporting.tables import Table
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import PAGE
from disp_llm.runs.results import perplexity_said


def write_run_page(run: Run) -> Path:
    """Writes the page of one run into its folder, and returns its path."""
    return Path(write_page(ReportConfig((run.folder,), anyway=run.anyway))["file"])


def write_page(config: ReportConfig) -> dict[str, Any]:
    """Writes the page; returns where it lies and how large it is."""
    config.validate()
    names = _told_apart([folder.resolve() for folder in config.runs])
    runs = [
        replace(read_run(Run(folder, config.anyway)), name=name)
        for folder, name in zip(config.runs, names, strict=True)
    ]
    single = Run(config.runs[0]).page_file if len(config.runs) == 1 else Path("report.html")
    path = config.output or single
    text = _template().render(
        runs=runs,
        learning=learning_chart(runs),
        quality=quality_chart(runs),
    )
    with atomic(path, PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return {"file": str(path), "bytes": path.stat().st_size, "runs": len(runs)}


def _told_apart(folders: list[Path]) -> list[str]:
    """What runs are called: by the last part of their folders or, where two would be called the
    same, by as many as tell them apart."""
    parts, names = 1, [folder.name for folder in folders]
    while len(set(names)) < len(set(folders)):
        parts += 1
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
    return names


def runs_table(runs: list[RunData]) -> Table:
    """A row for every size of every run."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        cost: tuple[str, ...] = ()
        if run.figures:
            cost = f"{run.figures.tokens_seen or 0:,}", f"{run.figures.seconds or 0:.0f}"
        for size in (size.figures for size in run.sizes):
            assert run.dense is not None
            figures = f"{size.keep:.4f}", perplexity_said(size), str(run.dense.measured)
            rows.append((run.name, *figures, *cost, measured_on(run)))
        if run.recovery:
            after = run.recovery.after
            figures = f"{after.keep:.4f}", str(after.measured), str(run.recovery.teacher or "")
            rows.append((f"{run.name}, trained", *figures, *cost, measured_on(run)))
        elif not run.sizes:
            rows.append((run.name, f"{run.status}: no size yet"))
    names = ("run", "keep", "perplexity", "original or teacher", "tokens seen", "seconds")
    return Table((*names, "measured on"), rows)


def measured_on(run: RunData) -> str:
    """`text.txt, 12,000 tokens, windows of 1024`: what perplexity was measured over."""
    made = run.recovery.after if run.recovery else run.dense
    if made is None or run.figures is None or run.figures.source is None:
        return ""
    measured = made.measured
    text = run.figures.source["eval_text"]
    return f"perplexity on {text}, {measured.tokens:,} tokens, windows of {measured.window}"


def widths_table(size: SizeData) -> Table:
    """What every block keeps of every site."""
    of_blocks = zip(*size.widths.values(), strict=True)
    rows = [(str(block), *map(str, widths)) for block, widths in enumerate(of_blocks)]
    return Table(("block", *size.widths), rows)


@cache
def _template() -> jinja2.Template:
    """Compiled once, since `compare` writes a page for every run of its own."""
    source = resources.files("disp_llm.reporting") / "report.html"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tables = (runs_table, sizes_table, recovery_table, widths_table, measured_on)
    environment.filters |= {"name_of": name_of, "shown": _shown}
    called = {made.__name__: made for made in tables}
    return environment.from_string(source.read_text(encoding="utf-8"), called)


def _shown(value: Any) -> Any:
    """The value of a setting without the folders of the paths in it."""
    if isinstance(value, list):
        return list(map(_shown, value))
    return name_of(value) if isinstance(value, str) else value
