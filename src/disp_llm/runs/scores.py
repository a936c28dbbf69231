"""Perplexity, and what a model scores on a suite, alone or against its original."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from disp_llm.config.schema import Amount, AtLeastOne, Count, Positive

Share = Annotated[float, Meta(ge=0, le=1)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it was measured over."""

    perplexity: Positive
    perplexity_stderr: Amount | None
    """None for a single window."""
    tokens: AtLeastOne
    """Tokens scored: all but the first of the text or of each window, and no token twice."""
    window: AtLeastOne
    stride: AtLeastOne
    window_losses: list[Finite] = field(default_factory=list)
    """Mean −ln p of each window, to six decimals, to be paired with another model's; empty in older
    results."""
    window_tokens: list[AtLeastOne] = field(default_factory=list)
    """Tokens that each window scores; empty if all score as many."""

    def __str__(self) -> str:
        return with_error(self.perplexity, self.perplexity_stderr)


@dataclass(frozen=True)
class TextScore:
    """Perplexity on one text; with `original`, against the original's."""

    perplexity: Positive
    tokens: AtLeastOne
    """Tokens scored."""
    window: AtLeastOne
    text: str
    """The files or the data set."""
    text_sha256: str
    windows_sha256: str
    """Hash of the ids in all windows (8 bytes each): perplexities are compared only over the same
    windows."""
    losses: Annotated[list[Amount], Meta(min_length=1)]
    """Mean −ln p of each window, to six decimals."""
    perplexity_stderr: Amount | None = None
    """None for a single window."""
    original: Positive | None = None
    """The original's perplexity on the same windows."""
    ratio: Positive | None = None
    """`perplexity / original`."""
    ratio_stderr: Amount | None = None
    """None for a single window."""


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one task; with `original`, against the original's."""

    stderr: Amount | None
    """Standard error of the accuracy by `metric`; None for a single question."""
    n: AtLeastOne
    """Number of questions."""
    metric: Literal["acc", "acc_norm"]
    chance: Annotated[float, Meta(ge=0, lt=1)]
    questions_sha256: str
    right: Annotated[str, Meta(pattern="^[01]+$")]
    """One digit per question: 1 if it was answered right by `metric`."""
    acc: Share | None = None
    acc_norm: Share | None = None
    original: Share | None = None
    """The original's accuracy on the same questions."""
    kept: Finite | None = None
    """`(accuracy − chance) / (original − chance)`; None if the original is not above chance."""
    kept_stderr: Amount | None = None
    """None for a single question."""
    shots: Count = 0
    """Solved questions before each question."""

    @property
    def accuracy(self) -> float:
        """Accuracy by `metric`."""
        return float(getattr(self, self.metric))


@dataclass(frozen=True)
class Scores:
    """Scores of a model on a suite."""

    suite: str
    texts: dict[str, TextScore] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    general_ratio: Positive | None = None
    """Geometric mean over the texts of pruned / original perplexity."""
    general_ratio_stderr: Amount | None = None
    kept: Finite | None = None
    """Mean over the tasks of what is kept of the original's accuracy above chance."""
    kept_stderr: Amount | None = None


def with_error(value: float | None, error: float | None, decimals: int = 2) -> str:
    """Returns `53.29 ± 7.51`, or `11,147 ± 2,698` for large values; a single window has no error.
    Empty if there is no value."""
    if value is None:
        return ""
    form = ",.0f" if value >= 1000 else f".{decimals}f"
    return format(value, form) + (f" ± {error:{form}}" if error is not None else "")


def percent_with_error(share: float | None, error: float | None) -> str:
    """Returns `87.1 ± 1.2 %`; empty if there is no share."""
    if share is None:
        return ""
    return f"{100 * share:.1f}" + (f" ± {100 * error:.1f} %" if error is not None else " %")


def ratio_said(scores: Scores | None) -> str:
    """Returns `×1.234 ± 0.010`; empty without texts or an original to compare with."""
    return paired_said(scores.general_ratio, scores.general_ratio_stderr) if scores else ""


def kept_said(scores: Scores | None) -> str:
    """Returns `87.1 ± 1.2 %`; empty without tasks or an original to compare with."""
    return percent_with_error(scores.kept, scores.kept_stderr) if scores else ""


def paired_said(ratio: float | None, error: float | None) -> str:
    """Returns `×1.234 ± 0.010`; empty if there is nothing to pair with."""
    return "" if ratio is None else "×" + with_error(ratio, error, 3)
