"""Methods side by side, as tables and lines."""

from typing import Any

from disp_lab.names import DENSE
from disp_lab.reporting.frontier import HEADINGS, Frontier, table
from disp_lab.reporting.tables import (
    by_method,
    columns,
    figures_in,
    of_sizes,
    pairs_said,
    suite_said,
)
from disp_lab.results import comparison_figures
from disp_llm.reporting.tables import Table
from disp_llm.reporting.terminal import say


def show_comparison(result: dict[str, Any]) -> None:
    """For each figure a row for each method, a column for each size.

    Args:
        result: what `compare.json` holds.
    """
    found = comparison_figures(result)
    keeps, rows = found.asked.keep, of_sizes(found.rows)
    for figure in figures_in(rows):
        title = f"{found.asked.model}, {figure}"
        Table(columns([figure], keeps), by_method(rows, [figure], keeps), title).show()
    for row in found.rows:
        if row.error:
            say(f"{row.name}: {row.error}")
    if found.dense:
        say(f"original {found.dense.measured}")
        for line in [*suite_said(found.dense.scores), *pairs_said(rows)]:
            say(line)
    if any(row.method == DENSE for row in found.rows):
        _show_frontier(Frontier(found))


def _show_frontier(frontier: Frontier) -> None:
    """What every model costs, and in words which are dominated."""
    names = ("model", frontier.value_name, *HEADINGS)
    Table(names, table(frontier), "frontier", left=names[-1:]).show()
    for sentence in frontier.sentences():
        say(sentence)
