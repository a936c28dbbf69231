"""Figures with what they were measured over, as `result.json` and `compare.json` hold them.

`as_json` writes a result as it is nested; `from_json` reads it back, and checks every value.
"""

import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_args

import msgspec

from disp_llm.config.names import ATTENTION, SITES, BudgetKind
from disp_llm.config.schema import Amount, Count, Positive, Size, as_type
from disp_llm.runs.scores import Scores

Result = TypeVar("Result")

MEASURED_AGAIN = "delete it; figures are measured again"
"""What to do about a damaged file of figures."""


Phase = Literal["prefill", "decode"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""What is timed: a prompt, or one token after as many cached ones."""


def workload_said(phase: Phase, length: int, batch: int) -> str:
    """`prefill, 512 tokens`, or `decode after 512 tokens, batch 1`."""
    if phase == "prefill":
        return f"prefill, {length} tokens"
    return f"decode after {length} tokens, batch {batch}"


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it was measured over."""

    perplexity: Positive
    perplexity_stderr: Amount | None
    """None for a single window."""
    tokens: Size
    """Tokens scored: all but the first of the text or of each window, and no token twice."""
    window: Size
    stride: Size
    window_losses: list[Amount] = field(default_factory=list)
    """Mean −ln p of each window, to six decimals, which another model's can be paired with; empty
    in results that are older."""
    window_tokens: list[Size] = field(default_factory=list)
    """Tokens that each window scores; empty where all score as many."""

    def __post_init__(self) -> None:
        require_losses(self.perplexity, self.window_losses, self.window_tokens)

    def __str__(self) -> str:
        return with_error(self.perplexity, self.perplexity_stderr)


def require_losses(perplexity: float | None, losses: list[float], tokens: list[int]) -> None:
    """Refuses, with a ValueError, losses of windows that are not those of the perplexity."""
    counts = tokens or [1] * len(losses)
    if len(counts) != len(losses):
        raise ValueError("has not as many window_tokens as window_losses")
    total = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    if losses and (not perplexity or abs(total / sum(counts) - math.log(perplexity)) > 1e-4):
        raise ValueError("has window_losses of another perplexity")


def with_error(value: float | None, error: float | None, decimals: int = 2) -> str:
    """`53.29 ± 7.51`, large ones `11,147 ± 2,698`; a single window has no standard error. Empty
    where there is no value."""
    if value is None:
        return ""
    form = ",.0f" if value >= 1000 else f".{decimals}f"
    return format(value, form) + (f" ± {error:{form}}" if error is not None else "")


def percent_with_error(share: float | None, error: float | None) -> str:
    """`87.1 ± 1.2 %`; empty where there is no share."""
    if share is None:
        return ""
    return f"{100 * share:.1f}" + (f" ± {100 * error:.1f} %" if error is not None else " %")


def ratio_said(scores: Scores | None) -> str:
    """`×1.234 ± 0.010`; empty where there are no texts or no original to compare with."""
    return paired_said(scores.general_ratio, scores.general_ratio_stderr) if scores else ""


def kept_said(scores: Scores | None) -> str:
    """`87.1 ± 1.2 %`; empty where there are no tasks or no original to compare with."""
    return percent_with_error(scores.kept, scores.kept_stderr) if scores else ""


def paired_said(ratio: float | None, error: float | None) -> str:
    """`×1.234 ± 0.010`; empty where there is nothing to pair with."""
    return "" if ratio is None else "×" + with_error(ratio, error, 3)


class Hardware(TypedDict):
    """What figures were measured on."""

    cpu: str
    threads: Size
    system: NotRequired[str]
    gpus: NotRequired[list[str]]


def machine_name(hardware: Hardware) -> str:
    """`AMD EPYC, 2 threads`: times of two machines are compared only where this is the same."""
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return ", ".join([hardware["cpu"], *hardware.get("gpus", []), threads])


class Provenance(TypedDict):
    """Where a row of figures comes from."""

    command: str
    seed: int
    date: str
    """UTC, as ISO 8601 has it."""
    commit: str
    """Of disp-llm, with `-dirty` where its code had changed since; empty = not from a checkout."""
    versions: dict[str, str]
    hardware: Hardware


@dataclass(frozen=True)
class MeasuredResult:
    """A model at some time, measured on the evaluation text and on a suite."""

    measured: Perplexity
    scores: Scores | None = None
    """Against the original's; None without a suite."""


@dataclass(frozen=True)
class OriginalResult:
    """The model as it came."""

    measured: Perplexity
    parameters: Size
    block_parameters: Size
    bytes: Size
    prompt: str = ""
    """The first tokens of the evaluation text."""
    sample: str = ""
    """What the model writes after them."""
    scores: Scores | None = None
    """On the suite of the run, where it has one."""


class Timing(TypedDict):
    """What was timed, the measured share of the original's time, what the model itself took (not
    known in older results), and all attempts."""

    work: str
    measured_share: Positive
    measured_ms: NotRequired[Positive]
    attempts: list[dict[str, Amount]]


SPEEDS = ("ms", "speedup")
"""What timing a model gives at least, for prefill and for decode."""


def require_speeds(speed: dict[str, float], *figures: str) -> None:
    """Refuses, with a ValueError, the timing of a model without one of these figures."""
    wanted = {f"{phase}_{figure}" for phase in PHASES for figure in figures}
    if speed and not wanted <= speed.keys():
        raise ValueError(f"has not all of {', '.join(sorted(wanted))}")


@dataclass(frozen=True)
class SizeResult:
    """One exported model of a run."""

    size: str
    """Its name in the run."""
    budget: BudgetKind
    share_asked: Amount
    """Of what the budget limits."""
    keep: Amount
    """Share of block parameters that is kept."""
    keep_total: Amount
    """Share of all parameters that is kept."""
    parameters: Size
    block_parameters: Size
    bytes: Size
    share_of_budget: Amount
    align: Size
    kv_cache: Amount
    """Size of the KV cache as a share of the original's."""
    heads_pruned: bool
    """Whether some blocks have fewer KV heads than others."""
    scaled: bool
    """Whether scales are folded into the weights."""
    biased: bool
    """Whether layers have gained biases."""
    adapter_rank: Count
    """Rank of the adapters that are added to the weights; 0 = none."""
    widths_full: dict[str, Size]
    """Width of every site in the original, of the block where it is widest."""
    folder: str = ""
    asked: str | None = None
    """`6GB` or `80ms`, of which `share_asked` is what it means for this original; None where a
    share was asked for."""
    usual_blocks: bool = True
    """Whether every block has attention and a dense MLP, or one of them: no hybrid, no mixture."""
    learned_weights: bool = False
    """Whether the weights themselves were learned beside the masks."""
    measured: Perplexity | None = None
    """None where the size was exported without running it; neither are the next three then known.
    """
    perplexity_masked: Positive | None = None
    logit_errors: dict[str, Amount] = field(default_factory=dict)
    """`max_logit_error` and the same by data type: max|Δlogit| / max|logit| against the masked
    model."""
    sample: str | None = None
    """What it writes after the beginning of the evaluation text."""
    dropped: dict[str, Count] = field(default_factory=dict)
    """Number of blocks that have lost their `attention`, and their `mlp`, where whole branches may
    be pruned."""
    latency: dict[str, Any] = field(default_factory=dict)
    """A `Timing` where time is the budget, else empty."""
    other_parameters: dict[str, Count] = field(default_factory=dict)
    """Of a wrapper the parameters of each part beside its language model, which stay as they are.
    """
    speed: dict[str, Positive] = field(default_factory=dict)
    """`prefill_ms`, `prefill_original_ms`, `prefill_speedup`, its quartiles `prefill_speedup_low`
    and `prefill_speedup_high`, and the same of decode, where the model was timed beside the
    original on the machine of the run."""
    scores: Scores | None = None
    """On the suite of the run, against the original's; None where it has none."""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        require_speeds(self.speed, *SPEEDS, "original_ms", "speedup_low", "speedup_high")
        if not set(SITES) <= self.widths_full.keys():
            raise ValueError("has not the widths of all sites")
        masked = self.perplexity_masked is not None
        if masked != bool(self.logit_errors) or (masked and self.measured is None):
            raise ValueError("has only a part of what holds it against the masked model")
        if self.latency:
            msgspec.convert(self.latency, Timing)

    @property
    def share_measured(self) -> float:
        """Share of what the budget limits: measured where that is time, else counted."""
        return self.latency["measured_share"] if self.latency else self.share_of_budget


def served_by_vllm(size: SizeResult) -> bool:
    """Whether stock vLLM serves the model: every block has an attention of the usual kind, which
    its Transformers backend asks for, and it is neither a wrapper nor a mixture of experts, with
    which it was not tried."""
    untried = size.other_parameters or not size.usual_blocks
    return not (size.dropped.get(ATTENTION) or untried)


NOT_MEASURED = "not measured"
"""Stands for a figure of a size that was exported without running it."""


def perplexity_said(size: SizeResult) -> str:
    """`53.29 ± 7.51`."""
    return str(size.measured or NOT_MEASURED)


def dropped_said(size: SizeResult) -> str:
    """`3 attentions, 1 MLP`: the branches that are pruned as wholes; empty where none is."""
    words = {"attention": ("attention", "attentions"), "mlp": ("MLP", "MLPs")}
    parts = [
        f"{number} {words[name][number > 1]}" for name, number in size.dropped.items() if number
    ]
    return ", ".join(parts)


def speedups(speed: dict[str, float]) -> dict[str, float]:
    """`{prefill, decode}`: times as fast as the original; empty where nothing was timed."""
    return {phase: speed[f"{phase}_speedup"] for phase in PHASES if speed}


def speed_said(size: SizeResult, phase: str) -> str:
    """`×1.23 (1.20 to 1.25)`, how many times as fast as the original with the quartiles over
    rounds; empty where nothing was timed."""
    if not size.speed:
        return ""
    low, middle, high = (size.speed[f"{phase}_speedup{end}"] for end in ("_low", "", "_high"))
    return f"×{middle:.2f} ({low:.2f} to {high:.2f})"


def as_json(value: Any) -> Any:
    """A result as plain values; what has its default is left out."""
    if is_dataclass(value):
        present = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        defaults = {entry.name: _default(entry) for entry in fields(value)}
        return {name: as_json(of) for name, of in present.items() if of != defaults[name]}
    if isinstance(value, dict):
        return {key: as_json(of) for key, of in value.items()}
    return [as_json(of) for of in value] if isinstance(value, list) else value


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def from_json(kind: type[Result], values: Any, file: str, hint: str = MEASURED_AGAIN) -> Result:
    """The result that `as_json` wrote; keys that it does not know are ignored."""
    return as_type(values, kind, field=file, hint=hint)
