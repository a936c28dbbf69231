"""Figures with what they were measured over, as `result.json` and `compare.json` hold them.

`as_json` writes a result as one flat object, a `Perplexity` inside it spread out; `from_json` reads
it back.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from disp_llm.config.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it was measured over."""

    perplexity: float
    perplexity_stderr: float | None
    """None for a single window."""
    tokens: int
    """Tokens scored: all but the first of the text or of each window, and no token twice."""
    window: int
    stride: int

    def __str__(self) -> str:
        return with_error(self.perplexity, self.perplexity_stderr)


def with_error(value: float, error: float | None) -> str:
    """`53.29 ± 7.51`, large ones `11,147 ± 2,698`; a single window has no standard error."""
    form = ",.0f" if value >= 1000 else ".2f"
    return format(value, form) + (f" ± {error:{form}}" if error is not None else "")


@dataclass(frozen=True)
class DenseResult:
    """The model as it came."""

    measured: Perplexity
    prompt: str
    """The first tokens of the evaluation text."""
    sample: str
    """What the model writes after them."""
    parameters: int
    block_parameters: int
    bytes: int


@dataclass(frozen=True)
class SizeResult:
    """One exported model of a run."""

    size: str
    """Its name in the run."""
    budget: str
    share_asked: float
    """`keep_asked` where the budget is block parameters, else `target`."""
    keep: float
    """Share of block parameters that is kept."""
    keep_total: float
    """Share of all parameters that is kept."""
    measured: Perplexity
    perplexity_masked: float
    logit_errors: dict[str, float]
    """`max_logit_error` and the same by data type: max|Δlogit| / max|logit| against the masked
    model."""
    parameters: int
    block_parameters: int
    bytes: int
    share_of_budget: float
    align: int
    kv_cache: float
    """Size of the KV cache as a share of the original's."""
    scaled: bool
    """Whether scales are folded into the weights."""
    biased: bool
    """Whether layers have gained biases."""
    widths_full: dict[str, int]
    """Width of every site of the first block in the dense model."""
    sample: str
    folder: str
    latency: dict[str, Any] = field(default_factory=dict)
    """What was timed, the measured share and the attempts, where time is the budget."""

    @property
    def share_measured(self) -> float:
        """Share of what the budget limits: measured where that is time, else counted."""
        return self.latency["measured_share"] if self.latency else self.share_of_budget


@dataclass(frozen=True)
class ComparisonRow:
    """One method at one size; a row that failed has an error and no figures."""

    method: str
    keep_asked: float
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    keep: float | None = None
    block_parameters: int | None = None
    parameters: int | None = None
    flops: float | None = None
    """Multiplications inside the blocks as a share of the dense model's."""
    tokens_seen: int | None = None
    seconds: float | None = None
    """Time to choose or to make the model, without evaluation."""
    error: str | None = None
    speed: dict[str, float] = field(default_factory=dict)
    """`prefill_ms`, `prefill_speedup` and the same of decode, where models were timed."""

    def __str__(self) -> str:
        if self.perplexity is None:
            return "–"
        return with_error(self.perplexity, self.perplexity_stderr)


@dataclass(frozen=True)
class BenchRow:
    """One model under one workload."""

    model: str
    phase: str
    length: int
    batch: int
    median_s: float
    spread_s: float
    """Between the quartiles."""
    tokens_per_s: float
    time_shares: dict[str, float]
    """Where the operators' time goes."""
    flops: int
    block_flops: int
    bytes_read: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class BenchComparison:
    """The second model's speed-up over the first under one workload."""

    phase: str
    length: int
    batch: int
    speedup: float
    speedup_quartiles: list[float]
    predicted_speedup: float
    predicted_from: str
    """What was counted for the prediction: `flops` or `bytes_read`."""


def as_json(result: Any) -> dict[str, Any]:
    """A result as one flat object of plain values; empty groups are left out."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(result):
        value = getattr(result, entry.name)
        if isinstance(value, Perplexity):
            values |= dataclasses.asdict(value)
        elif entry.name in SPREAD:
            values |= value
        elif entry.name == "share_asked":
            values["keep_asked" if result.budget == "params" else "target"] = value
        elif value != {} or entry.default_factory is dataclasses.MISSING:
            values[entry.name] = value
    return values


SPREAD = {"logit_errors": "max_logit_error", "speed": ("prefill_", "decode_")}
"""Groups that are spread out in the JSON object, and how their keys begin."""


def from_json(kind: type[Result], values: dict[str, Any], file: str) -> Result:
    """The result that `as_json` wrote; keys that it does not know are ignored.

    Raises:
        InputError: a value is missing; `file` says where.
    """
    assert dataclasses.is_dataclass(kind), kind
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.name == "measured":
            found["measured"] = from_json(Perplexity, values, file)
        elif entry.name in SPREAD:
            found[entry.name] = {
                k: v for k, v in values.items() if k.startswith(SPREAD[entry.name])
            }
        elif entry.name == "share_asked":
            found["share_asked"] = values.get("keep_asked", values.get("target"))
        elif entry.name in values:
            found[entry.name] = values[entry.name]
        elif dataclasses.MISSING is entry.default and dataclasses.MISSING is entry.default_factory:
            raise InputError(
                f"has no '{entry.name}'", field=file, hint="delete it; figures are measured again"
            )
    made: Any = kind
    return made(**found)
