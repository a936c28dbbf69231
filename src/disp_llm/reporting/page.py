"""A run -> one page that stands alone: no network; light, dark, phone, print and screen reader.

The template `report.html` holds all markup; `run_data` gives the figures. Whatever text
says is shown as text, and nothing on the page can run or be fetched.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from disp_llm.config.names import name_of
from disp_llm.reporting.charts import learning_chart
from disp_llm.reporting.run_data import RunData, read_run
from disp_llm.reporting.run_tables import recovery_table, sizes_table
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import PAGE


def write_run_page(run: Run, output: Path | None = None) -> Path:
    """Writes the page of one run, by default into its folder, and returns its path."""
    found = read_run(run)
    path = output or run.page_file
    with atomic(path, PAGE) as temporary:
        text = _template().render(run=found, learning=learning_chart(found))
        temporary.write_text(text, encoding="utf-8")
    return path


def measured_on(run: RunData) -> str:
    """`text.txt, 12,000 tokens, windows of 1024`: what perplexity was measured over."""
    made = run.recovery.after if run.recovery else run.dense
    if made is None or run.figures is None or run.figures.source is None:
        return ""
    measured = made.measured
    text = run.figures.source["eval_text"]
    return f"perplexity on {text}, {measured.tokens:,} tokens, windows of {measured.window}"


@cache
def _template() -> jinja2.Template:
    """The page of `report.html`, compiled once."""
    source = resources.files("disp_llm.reporting") / "report.html"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tables = (sizes_table, recovery_table, measured_on)
    environment.filters |= {"name_of": name_of, "shown": _shown}
    called = {made.__name__: made for made in tables}
    return environment.from_string(source.read_text(encoding="utf-8"), called)


def _shown(value: Any) -> Any:
    """The value of a setting without the folders of the paths in it."""
    if isinstance(value, list):
        return list(map(_shown, value))
    return name_of(value) if isinstance(value, str) else value
