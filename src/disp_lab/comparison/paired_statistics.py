"""Rows of a comparison beside one another: how many times the perplexity of a reference each has.

The reference of a size is ours (`learned`) or, where that is not there, the best of it.

What makes a window hard is hard for both models, so that the ratio is known far better than either
perplexity. Its error is the bootstrap's (Efron 1979): the spread of the ratio over many draws of as
many windows, with replacement, the same ones for both.

B windows, R resamples.
"""

from collections.abc import Sequence
from typing import Any

import torch

from disp_lab.comparison.table_rows import RowKey
from disp_lab.names import OURS

RESAMPLES = 2000

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
            other for other in rows if RowKey.of(other) == RowKey.of(row) and _pairs(row, other)
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


def paired_ratio(
    losses: Sequence[float], others: Sequence[float], tokens: Sequence[int] = ()
) -> tuple[float, float | None]:
    """One model's perplexity as a multiple of another's, and its standard error.

    Args:
        losses: mean −ln p of each window, of the one.
        others: the same of the other, of the same windows.
        tokens: how many tokens each window scores; none given = all as many.

    Returns:
        The ratio and its error; no error of a single window.
    """
    one, other = (torch.tensor(list(values), dtype=torch.float64) for values in (losses, others))
    counts = torch.tensor(list(tokens) or [1] * len(one), dtype=torch.float64)
    assert len(one) == len(other) == len(counts) > 0
    sums = (one - other) * counts
    ratio = float((sums.sum() / counts.sum()).exp())
    if len(one) < 2:
        return ratio, None
    generator = torch.Generator().manual_seed(0)  # the same figures give the same error
    drawn = torch.randint(len(one), (RESAMPLES, len(one)), generator=generator)  # (R, B)
    ratios = (sums[drawn].sum(1) / counts[drawn].sum(1)).exp()
    return ratio, float(ratios.std())
