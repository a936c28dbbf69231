"""One way to write a table: cells that may hold Markdown, the first column to the left."""

from collections.abc import Iterable, Sequence


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(columns: Sequence[str], rows: Iterable[Iterable[str]], align: str = "") -> list[str]:
    """Its lines.

    Args:
        align: `l`, `r` or `c` for each column. Default: the first to the left, others right.
    """
    rules = {"l": "---", "r": "---:", "c": ":-:"}
    marks = align or "l" + "r" * (len(columns) - 1)
    return [row(columns), f"|{'|'.join(rules[mark] for mark in marks)}|", *map(row, rows)]
