"""Renders one table for a terminal or notebook, as Markdown, and as HTML for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import rich.box
import rich.table

from disp_llm.reporting.terminal import results, say
from disp_llm.runs.markdown import escaped


@dataclass(frozen=True)
class Table:
    """Cells under named columns; the first column and those in `left` hold words."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: Sequence[str] = ()

    def show(self) -> None:
        """Prints the table to standard output."""
        if self.title:
            say(self.title)  # on its own: rich would wrap it to the table's width
        shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        for name in self.columns:
            is_left = name in (self.columns[0], *self.left)
            shown.add_column(name, justify="left" if is_left else "right")
        for row in self.rows:
            shown.add_row(*row)
        results.print(shown)

    def markdown(self) -> list[str]:
        """Returns the table's lines in Markdown."""
        words = (self.columns[0], *self.left)
        rule = "|".join("---" if name in words else "---:" for name in self.columns)
        head, *lines = [
            f"| {' | '.join(map(escaped, row))} |" for row in (self.columns, *self.rows)
        ]
        return [head, f"|{rule}|", *lines]

    def html(self) -> str:
        """Returns the table in HTML, without its title."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        lines = []
        for name, *cells in self.rows:
            row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>\n')
        return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table>"


def megabytes(count: int) -> str:
    """`269.0 MB`."""
    return f"{count / 1e6:,.1f} MB"
