"""Which rows a comparison should have: the sizes of every method, and their quantised versions."""

from dataclasses import dataclass
from typing import Any

from disp_lab.names import IN_TIME, ORIGINAL, WEIGHT_KINDS
from disp_lab.settings import CompareConfig


@dataclass(frozen=True)
class RowKey:
    """One row of a method: a size, by block parameters or by time, and a kind of weights."""

    keep: float | None = None
    target: float | None = None
    weights: Any = ""
    """Format of quantised weights; empty for the dtype of the run."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> "RowKey":
        """Returns the key of a row of `compare.json`."""
        return cls(row["keep_asked"], row.get("target"), row.get("weights", ""))

    @property
    def share(self) -> float:
        """Share of block parameters or of time."""
        found = self.target if self.keep is None else self.keep
        assert found is not None
        return found

    @property
    def fields(self) -> dict[str, Any]:
        """The key as fields of a row."""
        return {"keep_asked": self.keep, "target": self.target, "weights": self.weights}


def rows_asked(config: CompareConfig, method: str) -> list[RowKey]:
    """Returns the requested rows of a method, in order; none if it was not requested."""
    if method not in (ORIGINAL, *config.methods) and "all" not in config.methods:
        return []
    sizes: list[dict[str, float]] = [{"keep": keep} for keep in config.keep]
    if method == ORIGINAL:
        sizes = [{"keep": 1.0}]
    elif method == IN_TIME:
        sizes = [{"target": target} for target in config.fit]
    kinds = WEIGHT_KINDS if method in (ORIGINAL, *config.quantise) else ()
    return [RowKey(**size, weights=kind) for size in sizes for kind in ("", *kinds)]


def missing(config: CompareConfig, method: str, rows: list[dict[str, Any]]) -> list[RowKey]:
    """Returns the requested rows that still have to be made.

    If another row of the method works, a failed size is final: the method cannot have it. If none
    works, or if the row is quantised, it is tried again, for what it lacked may be there now.

    Args:
        rows: the method's rows in `compare.json`.
    """
    works = any(row.get("error") is None for row in rows)
    there = {
        RowKey.of(row)
        for row in rows
        if row.get("error") is None or (works and not row.get("weights"))
    }
    return [key for key in rows_asked(config, method) if key not in there]
