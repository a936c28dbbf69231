"""Which rows a comparison is to have: for every method its sizes, and what is quantised of them."""

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
    """Empty for the dtype of the run."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> "RowKey":
        """Where a row of `compare.json` stands."""
        return cls(row["keep_asked"], row.get("target"), row.get("weights", ""))

    @property
    def share(self) -> float:
        """The size as a number."""
        found = self.target if self.keep is None else self.keep
        assert found is not None
        return found

    @property
    def fields(self) -> dict[str, Any]:
        """The same as fields of a row."""
        return {"keep_asked": self.keep, "target": self.target, "weights": self.weights}


def rows_asked(config: CompareConfig, method: str) -> list[RowKey]:
    """The rows of a method that were asked for, in their order."""
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
    """Those that are not there yet.

    A size that failed where another one did not is one that the method cannot have; what failed
    altogether, or was to be quantised, is tried again, for what it lacked may be there now.

    Args:
        rows: those of the method that `compare.json` holds.
    """
    works = any(row.get("error") is None for row in rows)
    there = {
        RowKey.of(row)
        for row in rows
        if row.get("error") is None or (works and not row.get("weights"))
    }
    return [key for key in rows_asked(config, method) if key not in there]
