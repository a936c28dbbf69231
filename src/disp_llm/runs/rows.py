"""Rows of tables: models that were timed."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from disp_llm.config.schema import Amount, Count, Positive, Size
from disp_llm.runs.results import Phase


@dataclass(frozen=True)
class BenchRow:
    """One model under one workload."""

    model: str
    phase: Phase
    length: Size
    batch: Size
    median_s: Positive
    spread_s: Amount
    """Between the quartiles."""
    tokens_per_s: Positive
    time_shares: dict[str, Amount]
    """Where the operators' time goes."""
    flops: Count
    block_flops: Count
    bytes_read: Count
    peak_memory_bytes: Count


@dataclass(frozen=True)
class BenchComparison:
    """The second model's speed-up over the first under one workload."""

    phase: Phase
    length: Size
    batch: Size
    speedup: Positive
    speedup_quartiles: Annotated[list[Amount], Meta(min_length=2, max_length=2)]
    predicted_speedup: Positive
    predicted_from: str
    """What was counted for the prediction: `flops` or `bytes_read`."""
