"""Figures with what they were measured over, as `result.json` and `compare.json` hold them.

`as_json` writes a result as it is nested; `as_type` reads it back, and checks every value.
"""

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_args

from disp_llm.config.names import Bits, BudgetKind, Format
from disp_llm.config.schema import Amount, AtLeastOne, Count, Positive, as_type
from disp_llm.runs.scores import Perplexity, Scores

PUT_BACK = "put it back, or begin in a new `output_dir`"
"""What to do about a damaged `result.json`, which says what all else has to be."""


Phase = Literal["prefill", "decode"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""What is timed: a prompt, or one token after as many cached ones."""


def workload_said(phase: Phase, length: int, batch: int) -> str:
    """`prefill, 512 tokens`, or `decode after 512 tokens, batch 1`."""
    if phase == "prefill":
        return f"prefill, {length} tokens"
    return f"decode after {length} tokens, batch {batch}"


class Hardware(TypedDict):
    """What figures were measured on."""

    cpu: str
    threads: AtLeastOne
    system: NotRequired[str]
    gpus: NotRequired[list[str]]


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
    parameters: AtLeastOne
    block_parameters: AtLeastOne
    bytes: AtLeastOne
    prompt: str = ""
    """The first tokens of the evaluation text."""
    sample: str = ""
    """What the model writes after them."""
    scores: Scores | None = None
    """On the suite of the run, where it has one."""


class Timing(TypedDict):
    """What was timed in which program, the measured share of the original's time, what the model
    itself took (not known in older results), and all attempts."""

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
    """Of what the budget limits."""
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
    """Whether some blocks have fewer KV heads than others."""
    scaled: bool
    """Whether scales are folded into the weights."""
    biased: bool
    """Whether layers have gained biases."""
    adapter_rank: Count
    """Rank of the adapters that are added to the weights; 0 = none."""
    widths_full: dict[str, AtLeastOne]
    """Width of every site in the original, of the block where it is widest."""
    folder: str = ""
    converted: str = ""
    """The same in the format that `for` names; "" = in none."""
    formats: list[Format] = field(default_factory=list)
    """Of single programs, that can hold it."""
    asked: str | None = None
    """`6GB` or `80ms`, of which `share_asked` is what it means for this original; None where a
    share was asked for."""
    tokens: Count = 0
    """Of the original's vocabulary that it has; 0 = all."""
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
    latency: Timing | None = None
    """Where time is the budget."""
    other_parameters: dict[str, Count] = field(default_factory=dict)
    """Of a wrapper the parameters of each part beside its language model, which stay as they are.
    """
    speed: dict[str, Positive] = field(default_factory=dict)
    """`prefill_ms`, `prefill_original_ms`, `prefill_speedup`, its quartiles `prefill_speedup_low`
    and `prefill_speedup_high`, and the same of decode, where the model was timed beside the
    original on the machine of the run."""
    timed_in: str = "transformers"
    """The program that these times are of."""
    scores: Scores | None = None
    """On the suite of the run, against the original's; None where it has none."""
    provenance: Provenance | None = None

    @property
    def share_measured(self) -> float:
        """Share of what the budget limits: measured where that is time, else counted."""
        return self.latency["measured_share"] if self.latency else self.share_of_budget


@dataclass(frozen=True)
class Choice:
    """One way to store a model in the room that there is."""

    bits: Bits
    keep: Positive
    """Share of block parameters."""
    expected: Positive
    """Times the original's perplexity, before anything was learned."""
    bytes: AtLeastOne | None = None
    """Of what was written."""
    ratio: Positive | None = None
    """Times the original's perplexity on the held-out end of the learning text."""


@dataclass(frozen=True)
class Fit:
    """How what was asked for is met."""

    asked: str
    limit: Positive
    """Bytes or parameters."""
    tokens: Count
    """That stay; 0 = all."""
    choices: list[Choice]
    """The one that is expected to be best first."""
    chosen: Bits | None = None
    measured: Perplexity | None = None
    """Of the folder that was chosen."""

    @property
    def folder_name(self) -> str:
        """What that folder is called in the run."""
        return f"fit-{self.asked}"


class Source(TypedDict):
    """What a model was made of."""

    model: str
    revision: str
    text: str
    eval_text: str
    text_sha256: NotRequired[str]
    eval_text_sha256: NotRequired[str]
    """Both are missing from tables that were measured before they were recorded."""
    base_model: NotRequired[str]
    license: NotRequired[str]
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
    """The same in the format that `for` names; "" = in none."""
    scores: Scores | None = None
    """On the suite of the run, against the original's; None where it has none."""


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
    """When it began."""
    commit: str = ""
    resumed: list[Provenance] = field(default_factory=list)
    """Attempts to go on with other code or on another kind of machine than those it began with."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that a stage hands to the next, by its name in the run folder."""
    replacing: dict[str, str] = field(default_factory=dict)
    """The same of files that were being replaced when the run was killed: either hash is right."""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of the files on this machine that it was made of, by setting and path."""
    source: Source | None = None
    processes: AtLeastOne | None = None
    """Among how many the windows of a step were divided when the run was begun."""
    original: OriginalResult | None = None
    models: list[SizeResult] = field(default_factory=list)
    before: MeasuredResult | None = None
    """This one and the next three are those of `recover`."""
    original_scores: Scores | None = None
    """What the original scores on the suite, where there is one."""
    teacher: Perplexity | None = None
    model: TrainedResult | None = None
    fit: Fit | None = None
    """Of a run of `--fit`."""
    steps: AtLeastOne | None = None
    """Optimiser steps, where time fixed them."""
    keep_by_penalty: Amount | None = None
    tokens_seen: Count | None = None
    tokens_before: Count | None = None
    """That earlier recoveries had trained the weights on with which one began."""
    writing_s: Amount | None = None
    choosing_s: Amount | None = None
    measuring_original_s: Amount | None = None
    """Of its perplexity."""
    scoring_original_s: Amount | None = None
    """Of its scores, where the run has a suite."""
    seconds: Amount | None = None
    late_s: Amount | None = None
    """By which a run has taken longer than its `minutes`."""
    peak_memory_bytes: Count | None = None


def run_figures(values: dict[str, Any], file: str = "result.json") -> RunFigures:
    """The figures of a run."""
    return as_type(values, RunFigures, field=file, hint=PUT_BACK)


NOT_MEASURED = "not measured"
"""Stands for a figure of a size that was exported without running it."""


def dropped_said(size: SizeResult) -> str:
    """`3 attentions, 1 MLP`: the branches that are pruned as wholes; empty where none is."""
    words = {"attention": ("attention", "attentions"), "mlp": ("MLP", "MLPs")}
    parts = [
        f"{number} {words[name][number > 1]}" for name, number in size.dropped.items() if number
    ]
    return ", ".join(parts)


def as_json(value: Any) -> Any:
    """Results as plain values; what has its default is left out."""
    if is_dataclass(value):
        told = {entry: getattr(value, entry.name) for entry in fields(value)}
        return {entry.name: as_json(of) for entry, of in told.items() if of != _default(entry)}
    if isinstance(value, dict):
        return {key: as_json(of) for key, of in value.items()}
    return [as_json(of) for of in value] if isinstance(value, list) else value


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
