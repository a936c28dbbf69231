"""Figures with what they were measured over, as `result.json` and `compare.json` hold them.

`as_json` writes a nested result; `as_type` reads it back, and checks every value.
"""

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_args

from disp_llm.config.names import Bits, BudgetKind, Format
from disp_llm.config.schema import Amount, AtLeastOne, Count, Positive, as_type
from disp_llm.runs.scores import Perplexity, Scores

PUT_BACK = "put it back, or begin in a new `output_dir`"
"""What to do about a damaged `result.json`, against which all other files are checked."""

ROWS_AGAIN = "delete it; every row is made again"
"""What to do about a damaged `compare.json`."""


Phase = Literal["prefill", "decode"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""What is timed: a whole prompt, or one token after cached ones."""


def workload_said(phase: Phase, length: int, batch: int) -> str:
    """Returns `prefill, 512 tokens`, or `decode after 512 tokens, batch 1`."""
    if phase == "prefill":
        return f"prefill, {length} tokens"
    return f"decode after {length} tokens, batch {batch}"


class Hardware(TypedDict):
    """Machine that figures were measured on."""

    cpu: str
    threads: AtLeastOne
    system: NotRequired[str]
    gpus: NotRequired[list[str]]


class Provenance(TypedDict):
    """Where a row of figures comes from."""

    command: str
    seed: int
    date: str
    """UTC, in ISO 8601."""
    commit: str
    """Commit of disp-llm, with `-dirty` if its code had changed since; empty = no checkout."""
    versions: dict[str, str]
    hardware: Hardware


@dataclass(frozen=True)
class MeasuredResult:
    """A model at one time, measured on the evaluation text and on a suite."""

    measured: Perplexity
    scores: Scores | None = None
    """Suite scores, against the original's if these are known; None without a suite."""


@dataclass(frozen=True)
class OriginalResult:
    """The original model, as it came."""

    measured: Perplexity
    parameters: AtLeastOne
    block_parameters: AtLeastOne
    bytes: AtLeastOne
    prompt: str = ""
    """The first tokens of the evaluation text."""
    sample: str = ""
    """What the model writes after them."""
    scores: Scores | None = None
    """Suite scores; None without a suite."""


class Timing(TypedDict):
    """What was timed in which program, the measured share of the original's time, the model's own
    time (missing in older results), and all attempts."""

    work: str
    program: NotRequired[str]
    measured_share: Positive
    measured_ms: NotRequired[Positive]
    attempts: list[dict[str, Amount]]


@dataclass(frozen=True)
class SizeResult:
    """One exported model of a run."""

    size: str
    """Its name in the run."""
    budget: BudgetKind
    share_asked: Amount
    """Asked share of what the budget limits."""
    keep: Amount
    """Share of block parameters that is kept."""
    keep_total: Amount
    """Share of all parameters that is kept."""
    parameters: AtLeastOne
    block_parameters: AtLeastOne
    bytes: AtLeastOne
    share_of_budget: Amount
    align: AtLeastOne
    kv_cache: Amount
    """Size of the KV cache as a share of the original's."""
    heads_pruned: bool
    """Whether attention that stays has lost KV heads in some block."""
    scaled: bool
    """Whether scales are folded into the weights."""
    biased: bool
    """Whether layers have gained biases."""
    adapter_rank: Count
    """Rank of the adapters that are added to the weights; 0 = none."""
    widths_full: dict[str, AtLeastOne]
    """Largest width of every site in the original's blocks."""
    folder: str = ""
    converted: str = ""
    """Folder of the same model in the format that `for` names; "" = none."""
    formats: list[Format] = field(default_factory=list)
    """Formats of single programs that can hold it."""
    asked: str | None = None
    """Amount asked for, such as `6GB` or `80ms`; `share_asked` is its share of this original. None
    if a share was asked for."""
    vocabulary: Count = 0
    """Number of the original's tokens that it has; 0 = all."""
    usual_blocks: bool = True
    """Whether every block has attention and a dense MLP, or one of them: no hybrid, no mixture."""
    learned_weights: bool = False
    """Whether the weights themselves were learned beside the masks."""
    measured: Perplexity | None = None
    """Perplexity; None if the size was not run at export. The next three are then unknown too."""
    perplexity_masked: Positive | None = None
    logit_errors: dict[str, Amount] = field(default_factory=dict)
    """`max_logit_error` and the same by data type: max|Δlogit| / max|logit| against the masked
    model."""
    sample: str | None = None
    """What it writes after the beginning of the evaluation text."""
    dropped: dict[str, Count] = field(default_factory=dict)
    """Number of blocks that lost their `attention`, and their `mlp`, if whole branches may be
    pruned."""
    latency: Timing | None = None
    """Timing, if the budget is latency."""
    other_parameters: dict[str, Count] = field(default_factory=dict)
    """Parameters of each part of a wrapper beside its language model; these stay as they are."""
    speed: dict[str, Positive] = field(default_factory=dict)
    """`prefill_ms`, `prefill_original_ms`, `prefill_speedup`, its quartiles `prefill_speedup_low`
    and `prefill_speedup_high`, and the same for decode. Empty unless the model was timed beside the
    original, on the machine of the run."""
    timed_in: str = "transformers"
    """Program that these times were measured in."""
    scores: Scores | None = None
    """Suite scores against the original's; None without a suite."""
    provenance: Provenance | None = None

    @property
    def share_measured(self) -> float:
        """Share of what the budget limits: measured for latency, else counted."""
        return self.latency["measured_share"] if self.latency else self.share_of_budget


@dataclass(frozen=True)
class Choice:
    """One way to store a model in the size asked for."""

    bits: Bits
    keep: Positive
    """Share of block parameters."""
    expected: Positive
    """Perplexity ratio to the original that was predicted before learning."""
    bytes: AtLeastOne | None = None
    """Bytes of the written weights."""
    ratio: Positive | None = None
    """Perplexity ratio to the original on the held-out end of the learning text."""


@dataclass(frozen=True)
class Fit:
    """How the asked size is met."""

    asked: str
    limit: Positive
    """Asked size in bytes or parameters."""
    vocabulary: Count
    """Number of tokens that stay; 0 = all."""
    choices: list[Choice]
    """Choices, the one predicted to be best first."""
    chosen: Bits | None = None
    measured: Perplexity | None = None
    """Perplexity of the chosen folder."""

    @property
    def folder_name(self) -> str:
        """Name of that folder in the run."""
        return f"fit-{self.asked}"


class Source(TypedDict):
    """What a model was made of."""

    model: str
    revision: str
    text: str
    eval_text: str
    text_sha256: NotRequired[str]
    eval_text_sha256: NotRequired[str]
    """Both hashes are missing from tables that were measured before they were recorded."""
    base_model: NotRequired[str]
    license: NotRequired[str]
    package: NotRequired[str]
    """Package that has the original's classes, if transformers has not."""
    teacher_revision: NotRequired[str]
    weights_from_revision: NotRequired[str]


@dataclass(frozen=True)
class TrainedResult:
    """The model that `recover` exported."""

    measured: Perplexity
    keep: Positive
    keep_total: Positive
    parameters: AtLeastOne
    block_parameters: AtLeastOne
    bytes: AtLeastOne
    folder: str
    converted: str = ""
    """Folder of the same model in the format that `for` names; "" = none."""
    scores: Scores | None = None
    """Suite scores, against the original's if these are known; None without a suite."""


@dataclass(frozen=True)
class RunFigures:
    """All that `result.json` of a run holds, as far as the run has come."""

    status: Literal["running", "stopped", "done"]
    run: str
    dtype: str
    command: str
    seed: int
    versions: dict[str, str]
    hardware: Hardware
    date: str = ""
    """When the run began."""
    commit: str = ""
    resumed: list[Provenance] = field(default_factory=list)
    """Resumed attempts with other code, libraries or hardware than the attempt recorded before."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that a stage hands to the next, by its name in the run folder."""
    replacing: dict[str, str] = field(default_factory=dict)
    """Hashes of files that were being replaced when the run was killed: either hash is right."""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of local files and in-memory texts that it was made of, by setting and path."""
    source: Source | None = None
    processes: AtLeastOne | None = None
    """Processes that divided the windows of a step when the run began."""
    original: OriginalResult | None = None
    models: list[SizeResult] = field(default_factory=list)
    before: MeasuredResult | None = None
    """This field and the next three are those of `recover`."""
    original_scores: Scores | None = None
    """The original's suite scores; None before they are known, and without a suite."""
    teacher: Perplexity | None = None
    model: TrainedResult | None = None
    fit: Fit | None = None
    """How `--fit` was met; None unless it decided tokens and bits."""
    steps: AtLeastOne | None = None
    """Optimiser steps, if time fixed their number."""
    keep_by_penalty: Amount | None = None
    tokens_seen: Count | None = None
    tokens_before: Count | None = None
    """Tokens that earlier recoveries had trained the starting weights on."""
    writing_s: Amount | None = None
    choosing_s: Amount | None = None
    measuring_original_s: Amount | None = None
    """Seconds that measuring its perplexity took."""
    scoring_original_s: Amount | None = None
    """Seconds that measuring its suite scores took."""
    seconds: Amount | None = None
    late_s: Amount | None = None
    """Seconds that a run took beyond its `minutes`."""
    peak_memory_bytes: Count | None = None


def run_figures(values: dict[str, Any], file: str = "result.json") -> RunFigures:
    """Returns the figures of a run, typed and checked."""
    return as_type(values, RunFigures, field=file, hint=PUT_BACK)


NOT_MEASURED = "not measured"
"""Text in place of a figure of a size that was exported without running it."""


def dropped_said(size: SizeResult) -> str:
    """Returns the branches pruned as wholes, such as `3 attentions, 1 MLP`; empty if none is."""
    words = {"attention": ("attention", "attentions"), "mlp": ("MLP", "MLPs")}
    parts = [
        f"{number} {words[name][number > 1]}" for name, number in size.dropped.items() if number
    ]
    return ", ".join(parts)


def as_json(value: Any) -> Any:
    """Converts results to plain values; leaves out what has its default."""
    if is_dataclass(value):
        told = {entry: getattr(value, entry.name) for entry in fields(value)}
        return {entry.name: as_json(of) for entry, of in told.items() if of != _default(entry)}
    if isinstance(value, dict):
        return {key: as_json(of) for key, of in value.items()}
    return [as_json(of) for of in value] if isinstance(value, list) else value


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
