"""JSON objects that commands have written -> the typed results in them: one schema a file."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from disp_llm.config.names import DENSE
from disp_llm.config.schema import Amount, Count
from disp_llm.runs.figures import Hardware, Source, machine_name
from disp_llm.runs.identity import Stamps
from disp_llm.runs.results import from_json
from disp_llm.runs.rows import BenchComparison, BenchRow, ComparisonRow, OriginalResult

ROWS_AGAIN = "delete it; every row is made again"
"""What to do about a damaged `compare.json`."""

BENCH_AGAIN = "write it again by `disp-llm bench … --json`, or delete it"
"""What to do about a damaged `bench.json`."""


@dataclass(frozen=True)
class Asked:
    """What a comparison was asked for."""

    model: str
    keep: list[Amount]


@dataclass(frozen=True)
class ComparisonFigures:
    """All that `compare.json` holds; a row for every method and size that there is yet."""

    asked: Asked
    rows: list[ComparisonRow]
    dense: OriginalResult | None = None
    source: Source | None = None
    inputs: Stamps = field(default_factory=dict)
    """The files on this machine that it was made of."""
    hardware: Hardware | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows and (self.dense is None or self.source is None):
            raise ValueError("has rows and no dense model or source")
        for row in self.rows:
            counted = row.method != DENSE and row.target is None
            if counted and row.keep_asked not in self.asked.keep:
                raise ValueError(f"has a row of keep {row.keep_asked}, which was not asked for")
        dense = self.dense.scores if self.dense else None
        for row in (row for row in self.rows if row.error is None):
            if (row.scores and row.scores.sizes) != (dense and dense.sizes):
                raise ValueError(f"has not all scores of {row.method} that the dense model has")
            if row.scores and not row.scores.is_against_original:
                raise ValueError(f"has scores of {row.method} against nothing")


def comparison_figures(result: Any, file: str = "compare.json") -> ComparisonFigures:
    """What `compare.json` holds, with the times of one machine: that of most rows. A row of another
    machine is left without its own, and its note says so, since a table sets them side by side.

    Raises:
        InputError: a value is missing, or is of another type; `file` says where.
    """
    found = from_json(ComparisonFigures, result, file, ROWS_AGAIN)
    machines = [_machine(row, found) for row in found.rows]
    if len(set(machines)) < 2:
        return found
    (most, _), *_ = Counter(machines).most_common(1)
    rows = [
        row if machine == most or not _is_timed(row) else _untimed(row, machine)
        for row, machine in zip(found.rows, machines, strict=True)
    ]
    return replace(found, rows=rows)


def _machine(row: ComparisonRow, found: ComparisonFigures) -> str:
    """Where a row was made; of an old one, what the whole comparison says."""
    hardware = row.provenance["hardware"] if row.provenance else found.hardware
    return machine_name(hardware) if hardware else "an unknown machine"


def _is_timed(row: ComparisonRow) -> bool:
    return row.seconds is not None or bool(row.speed)


def _untimed(row: ComparisonRow, machine: str) -> ComparisonRow:
    """The same without what took time on a machine that is not that of the table."""
    notes = [row.note] if row.note else []
    note = "; ".join([*notes, f"made on another machine ({machine})"])
    return replace(row, seconds=None, speed={}, note=note)


@dataclass(frozen=True)
class Loading:
    """Load time and memory of a model in a process of its own."""

    load_s: Amount
    peak_memory_bytes: Count
    weight_bytes: Count


@dataclass(frozen=True)
class BenchFigures:
    """All that `disp-llm bench --json` prints."""

    model: str
    against: str
    dtype: str
    fused: bool
    compiled: bool
    hardware: Hardware
    results: list[BenchRow]
    """Two for every workload: the original's and the pruned model's."""
    comparisons: list[BenchComparison]
    loading: list[Loading]

    def __post_init__(self) -> None:
        if len(self.results) != 2 * len(self.comparisons) or len(self.loading) != 2:
            raise ValueError("has not two models for every comparison")

    @property
    def rows(self) -> list[tuple[BenchComparison, BenchRow, BenchRow]]:
        """For every workload how the models compare, and the figures of the original and the pruned
        one."""
        return list(zip(self.comparisons, self.results[::2], self.results[1::2], strict=True))


def bench_figures(result: Any, file: str) -> BenchFigures:
    """What `disp-llm bench --json` prints.

    Raises:
        InputError: a value is missing, or is of another type; `file` says where.
    """
    return from_json(BenchFigures, result, file, BENCH_AGAIN)
