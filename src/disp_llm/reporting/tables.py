"""One way to make a table, for a terminal, Markdown and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
import rich.table

from disp_llm.reporting.terminal import results
from disp_llm.runs.markdown import table_row


@dataclass(frozen=True)
class Table:
    """Cells under named columns; the first column, and those in `left`, hold words."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: Sequence[str] = ()

    def show(self) -> None:
        """Prints it on standard output."""
        shown = rich.table.Table(title=self.title or None, box=rich.box.SIMPLE_HEAD)
        for name in self.columns:
            is_left = name in (self.columns[0], *self.left)
            shown.add_column(name, justify="left" if is_left else "right")
        for row in self.rows:
            shown.add_row(*row)
        results.print(shown)

    def markdown(self) -> list[str]:
        """Its lines in Markdown."""
        words = (self.columns[0], *self.left)
        rule = "|".join("---" if name in words else "---:" for name in self.columns)
        return [table_row(self.columns), f"|{rule}|", *map(table_row, self.rows)]


def megabytes(count: int) -> str:
    """`269.0 MB`."""
    return f"{count / 1e6:,.1f} MB"
