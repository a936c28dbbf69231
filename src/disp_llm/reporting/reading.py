"""What `disp-llm bench --json` has printed -> the typed results in it."""

from dataclasses import dataclass
from typing import Any

from disp_llm.config.schema import Amount, Count
from disp_llm.runs.results import Hardware, from_json
from disp_llm.runs.rows import BenchComparison, BenchRow

BENCH_AGAIN = "write it again by `disp-llm bench … --json`, or delete it"
"""What to do about a damaged `bench.json`."""


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
    """What `disp-llm bench --json` prints."""
    return from_json(BenchFigures, result, file, BENCH_AGAIN)
