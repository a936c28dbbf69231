"""Rows of tables: methods side by side, and models that were timed."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from disp_llm.config.names import DENSE
from disp_llm.config.schema import Amount, Count, Positive, Size
from disp_llm.runs.figures import Provenance
from disp_llm.runs.results import (
    SPEEDS,
    Perplexity,
    Phase,
    require_losses,
    require_speeds,
    shares_of_time,
    with_error,
)
from disp_llm.runs.scores import Scores


@dataclass(frozen=True)
class OriginalResult:
    """The model that methods are compared on, as it came."""

    measured: Perplexity
    parameters: Size
    block_parameters: Count
    scores: Scores | None = None
    """On the suite of the comparison, where it has one."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method at one size; a row that failed has an error and no figures."""

    method: str
    keep_asked: Amount | None
    """None where the size is a share of the time."""
    perplexity: Positive | None = None
    perplexity_stderr: Amount | None = None
    keep: Amount | None = None
    block_parameters: Count | None = None
    parameters: Size | None = None
    flops: Amount | None = None
    """Multiplications inside the blocks as a share of the dense model's."""
    tokens_seen: Count | None = None
    seconds: Amount | None = None
    """Time to choose or to make the model, without evaluation."""
    error: str | None = None
    speed: dict[str, Positive] = field(default_factory=dict)
    """`prefill_ms`, `prefill_speedup` and the same of decode, where models were timed."""
    scores: Scores | None = None
    """On the suite of the comparison, against the original's; None where it has none."""
    target: Amount | None = None
    """Share of the original's prefill time that was asked for, in place of `keep_asked`."""
    weights: str = ""
    """What the weights of the blocks are quantised to, such as `int8`; empty = the run's dtype."""
    bytes: Count | None = None
    """Of all weights as they are stored; None where no smaller model runs."""
    kv_cache_bytes: Count | None = None
    """After a prompt of 512 tokens, or of as many as the model can read."""
    note: str = ""
    """What a reader has to know of the figures."""
    window_losses: list[Amount] = field(default_factory=list)
    """Mean −ln p of each window of the evaluation text; empty in comparisons that are older."""
    window_tokens: list[Size] = field(default_factory=list)
    """Tokens that each window scores; empty where all score as many."""
    paired_with: str = ""
    """The method whose row of the same size is the reference; empty = there is none."""
    paired_ratio: Positive | None = None
    """Perplexity as a multiple of the reference's, over the same windows."""
    paired_ratio_stderr: Amount | None = None
    """By the bootstrap over these windows; None for a single one."""
    provenance: Provenance | None = None
    """Of this row; None in comparisons that were made before it was recorded."""

    def __post_init__(self) -> None:
        figures = (self.perplexity, self.keep, self.block_parameters, self.parameters, self.flops)
        if self.error is None and None in (*figures, self.tokens_seen):
            raise ValueError("has neither all figures nor an error")
        if (self.keep_asked is None) == (self.target is None):
            raise ValueError("has not one of keep_asked and target")
        require_speeds(self.speed, *SPEEDS)
        require_losses(self.perplexity, self.window_losses, self.window_tokens)

    @property
    def name(self) -> str:
        """`learned keep 0.8`, `latency 0.8 int8`, `dense int4`."""
        size = f" keep {self.keep_asked:g}" if self.target is None else f" {self.target:g}"
        size = "" if self.method == DENSE else size
        return f"{self.method}{size}" + (f" {self.weights}" if self.weights else "")

    @property
    def measured(self) -> dict[str, float]:
        """Time of prefill and decode as a share of the original's; empty where none was timed."""
        return shares_of_time(self.speed)

    def __str__(self) -> str:
        if self.perplexity is None:
            return "–"
        return with_error(self.perplexity, self.perplexity_stderr)


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
