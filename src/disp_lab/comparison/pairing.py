"""Rows of a comparison beside one another: how many times the perplexity of a reference each has.

The reference of a size is ours (`learned`) or, where that is not there, the best of it.
"""

from typing import Any

from disp_lab.comparison.places import Place
from disp_lab.names import OURS
from disp_llm.evaluation.paired import paired_ratio

RATIO = ("paired_with", "paired_ratio", "paired_ratio_stderr")
"""Fields of a row that its reference has given it."""

Row = dict[str, Any]
"""A row of `compare.json`."""


def paired(rows: list[Row]) -> list[Row]:
    """The same rows, each with the ratio to the reference of its size and kind of weights; without
    one where nothing of its size was measured on the same windows.

    Args:
        rows: of one comparison, so that all were measured on the same windows.
    """
    found = []
    for row in rows:
        alone = {key: value for key, value in row.items() if key not in RATIO}
        others = [
            other for other in rows if Place.of(other) == Place.of(row) and _pairs(row, other)
        ]
        found.append(alone | (_ratio(row, _reference(others)) if len(others) > 1 else {}))
    return found


def _pairs(row: Row, other: Row) -> bool:
    """Whether both have losses, of the same windows."""
    losses, others = row.get("window_losses", []), other.get("window_losses", [])
    same = row.get("window_tokens") == other.get("window_tokens")
    return 0 < len(losses) == len(others) and same


def _reference(rows: list[Row]) -> Row:
    ours = [row for row in rows if row["method"] == OURS[0]]
    return ours[0] if ours else min(rows, key=lambda row: row["perplexity"])


def _ratio(row: Row, reference: Row) -> Row:
    losses = (row["window_losses"], reference["window_losses"])
    ratio, error = paired_ratio(*losses, row.get("window_tokens", []))
    found = {"paired_with": reference["method"], "paired_ratio": ratio}
    has_error = row is not reference and error is not None
    return found | ({"paired_ratio_stderr": error} if has_error else {})
