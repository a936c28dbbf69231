"""All that `result.json` of a run holds: one schema, whatever command made the run and however far
it has come."""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from disp_llm.config.schema import Amount, Count, Positive, Size
from disp_llm.runs.identity import Stamps
from disp_llm.runs.results import (
    Hardware,
    MeasuredResult,
    OriginalResult,
    Perplexity,
    Provenance,
    SizeResult,
    from_json,
)
from disp_llm.runs.scores import Scores


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
class SyntheticText:
    """What a model writes to learn from."""

    sequences: Size | None
    """None = until the time is over, and it is not yet."""
    held_out: Count
    """Tokens at the end that are only measured on."""
    length: Size
    seed: int
    revision: str
    """Of the model that writes."""


@dataclass(frozen=True)
class TrainedResult:
    """The model that `recover` exported."""

    measured: Perplexity
    keep: Positive
    keep_total: Positive
    parameters: Size
    block_parameters: Size
    bytes: Size
    folder: str
    scores: Scores | None = None
    """On the suite of the run, against the original's; None where it has none."""


@dataclass(frozen=True)
class RunFigures:
    """All that `result.json` of a run holds, as far as the run has come."""

    status: Literal["running", "done"]
    run: str
    dtype: str
    command: str
    seed: int
    versions: dict[str, str]
    hardware: Hardware
    date: str = ""
    """When it began; this and `commit` are missing from runs that began before they were recorded.
    """
    commit: str = ""
    resumed: list[Provenance] = field(default_factory=list)
    """Attempts to go on with other code or on another kind of machine than those it began with."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that a stage hands to the next, by its name in the run folder."""
    replacing: dict[str, str] = field(default_factory=dict)
    """The same of files that were being replaced when the run was killed: either hash is right."""
    inputs: Stamps = field(default_factory=dict)
    """The files on this machine that it was made of."""
    source: Source | None = None
    processes: Size | None = None
    """Among how many the windows of a step were divided when the run was begun."""
    original: OriginalResult | None = None
    models: list[SizeResult] = field(default_factory=list)
    before: MeasuredResult | None = None
    """This one and the next three are those of `recover`."""
    original_scores: Scores | None = None
    """What the original scores on the suite, where there is one."""
    teacher: Perplexity | None = None
    model: TrainedResult | None = None
    synthetic: SyntheticText | None = None
    steps: Size | None = None
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

    def __post_init__(self) -> None:
        """A run that is done has everything."""
        if "disp-llm" not in self.versions:
            raise ValueError("has no version of disp-llm")
        pruned = ("original", "models")
        needed = ("source", "tokens_seen", "seconds", "peak_memory_bytes")
        needed += pruned if self.before is None else ("model",)
        for name in needed if self.status == "done" else ():
            if getattr(self, name) in (None, "", []):
                raise ValueError(f"is done and has no {name}")


def run_figures(values: dict[str, Any], file: str) -> RunFigures:
    """The figures of a run."""
    return from_json(RunFigures, values, file)
