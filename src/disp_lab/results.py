"""Types of `compare.json`: the original, and a row for each method and size."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from disp_lab.names import ORIGINAL
from disp_llm.config.schema import Amount, AtLeastOne, Count, Positive, as_type
from disp_llm.runs.results import PHASES, ROWS_AGAIN, Hardware, Provenance, Source
from disp_llm.runs.scores import Finite, Perplexity, Scores, with_error


@dataclass(frozen=True)
class OriginalResult:
    """The unpruned model that methods are compared on."""

    measured: Perplexity
    parameters: AtLeastOne
    block_parameters: Count
    scores: Scores | None = None
    """Scores on the comparison's suite; None without a suite."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method at one size; a row that failed has an error and no figures."""

    method: str
    keep_asked: Amount | None
    """Share of block parameters asked for; None if the size is a share of the time."""
    perplexity: Positive | None = None
    perplexity_stderr: Amount | None = None
    keep: Amount | None = None
    block_parameters: Count | None = None
    parameters: AtLeastOne | None = None
    flops: Amount | None = None
    """Multiplications inside the blocks as a share of the original's."""
    tokens_seen: Count | None = None
    seconds: Amount | None = None
    """Seconds to choose the masks or to make the model, without evaluation."""
    error: str | None = None
    speed: dict[str, Positive] = field(default_factory=dict)
    """`prefill_ms`, `prefill_speedup` with quartiles, the same for decode; empty if not timed."""
    scores: Scores | None = None
    """Scores on the comparison's suite, against the original's; None without a suite."""
    target: Amount | None = None
    """Share of the original's prefill time asked for; None if `keep_asked` is set."""
    weights: str = ""
    """Format of the blocks' quantised weights, such as `int8`; empty = the run's dtype."""
    bytes: Count | None = None
    """Bytes of all stored weights; None if the model that runs is no smaller."""
    kv_cache_bytes: Count | None = None
    """Bytes of the KV cache after a prompt of 512 tokens, or of as many as the model can read."""
    note: str = ""
    """What a reader must know about the figures."""
    window_losses: list[Finite] = field(default_factory=list)
    """Mean −ln p of each window of the evaluation text; empty in older comparisons."""
    window_tokens: list[AtLeastOne] = field(default_factory=list)
    """Tokens that each window scores; empty if all score equally many."""
    paired_with: str = ""
    """Method whose row of the same size is the reference; empty = no reference."""
    paired_ratio: Positive | None = None
    """Perplexity as a multiple of the reference's, over the same windows."""
    paired_ratio_stderr: Amount | None = None
    """Its bootstrap error over these windows; None for a single one or for the reference itself."""
    provenance: Provenance | None = None
    """How this row was made; None in comparisons made before this was recorded."""

    def __post_init__(self) -> None:
        figures = (self.perplexity, self.keep, self.block_parameters, self.parameters, self.flops)
        if self.error is None and None in (*figures, self.tokens_seen):
            raise ValueError("has neither all figures nor an error")
        if (self.keep_asked is None) == (self.target is None):
            raise ValueError("has not one of keep_asked and target")

    @property
    def name(self) -> str:
        """Name of the row: `learned keep 0.8`, `latency 0.8 int8`, `original int4`."""
        size = f"keep {self.keep_asked:g}" if self.target is None else f"{self.target:g}"
        model = self.method if self.method == ORIGINAL else f"{self.method} {size}"
        return f"{model} {self.weights}".rstrip()

    @property
    def speedup(self) -> dict[str, float]:
        """Speed relative to the original's, for prefill and decode; empty if not timed."""
        return {phase: self.speed[f"{phase}_speedup"] for phase in PHASES if self.speed}

    def __str__(self) -> str:
        if self.perplexity is None:
            return "–"
        return with_error(self.perplexity, self.perplexity_stderr)


@dataclass(frozen=True)
class Asked:
    """What a comparison was asked for."""

    model: str
    keep: list[Amount]


@dataclass(frozen=True)
class ComparisonFigures:
    """Content of `compare.json`; `rows` holds those made so far, one per method and size."""

    asked: Asked
    rows: list[ComparisonRow]
    original: OriginalResult | None = None
    source: Source | None = None
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Hashes of the local files that were read, by setting and path."""
    hardware: Hardware | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows and (self.original is None or self.source is None):
            raise ValueError("has rows and no original or source")
        for row in self.rows:
            counted = row.method != ORIGINAL and row.target is None
            if counted and row.keep_asked not in self.asked.keep:
                raise ValueError(f"has a row of keep {row.keep_asked}, which was not asked for")


def comparison_figures(result: Any, file: str = "compare.json") -> ComparisonFigures:
    """Parses `compare.json` and keeps the times of one machine, that of most rows. Rows of others
    lose theirs, and their notes say so, since a table sets them side by side."""
    found: ComparisonFigures = as_type(result, ComparisonFigures, field=file, hint=ROWS_AGAIN)
    machines = [_machine(row, found) for row in found.rows]
    if len(set(machines)) < 2:
        return found
    (most, _), *_ = Counter(machines).most_common(1)
    rows = [
        row if machine == most or not _is_timed(row) else _untimed(row, machine)
        for row, machine in zip(found.rows, machines, strict=True)
    ]
    return replace(found, rows=rows)


def of_sizes(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """Returns the unquantised rows of methods whose size is a share of block parameters."""
    return [
        row for row in rows if row.method != ORIGINAL and row.target is None and not row.weights
    ]


def _machine(row: ComparisonRow, found: ComparisonFigures) -> str:
    """Returns the machine that made a row; for an old row, the machine of the whole comparison."""
    hardware = row.provenance["hardware"] if row.provenance else found.hardware
    return machine_name(hardware) if hardware else "an unknown machine"


def machine_name(hardware: Hardware) -> str:
    """Returns a name such as `AMD EPYC, 2 threads`; only times of equal names are compared."""
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return ", ".join([hardware["cpu"], *hardware.get("gpus", []), threads])


def _is_timed(row: ComparisonRow) -> bool:
    return row.seconds is not None or bool(row.speed)


def _untimed(row: ComparisonRow, machine: str) -> ComparisonRow:
    """Returns the row without its times; a note names the other machine that made it."""
    notes = [row.note] if row.note else []
    note = "; ".join([*notes, f"made on another machine ({machine})"])
    return replace(row, seconds=None, speed={}, note=note)
