"""Paired statistics of a comparison: each row's perplexity as a multiple of a reference row's.

The reference of a size is ours (`learned`) or, without it, the row of lowest perplexity.

A window that is hard for one model is hard for both, so the ratio is known far better than either
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
"""Fields of a row that come from its reference."""

Row = dict[str, Any]
"""A row of `compare.json`."""


def paired(rows: list[Row]) -> list[Row]:
    """Returns the rows of one comparison, each with the ratio to the reference of its size and kind
    of weights. A row has none if no other row of its size was measured on the same windows."""
    found = []
    for row in rows:
        alone = {key: value for key, value in row.items() if key not in RATIO}
        others = [
            other for other in rows if RowKey.of(other) == RowKey.of(row) and _pairs(row, other)
        ]
        found.append(alone | (_ratio(row, _reference(others)) if len(others) > 1 else {}))
    return found


def _pairs(row: Row, other: Row) -> bool:
    """Returns whether both have losses of as many windows, with the same numbers of tokens."""
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
    """Returns one model's perplexity as a multiple of another's, and its standard error; None for a
    single window.

    Args:
        losses, others: mean −ln p of each window, of the one model and of the other.
        tokens: number of tokens that each window scores; empty = all as many.
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
