"""What a model scores on a suite, alone or against its original, as JSON objects hold it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from disp_llm.config.schema import Amount, Count, Positive, Size

Share = Annotated[float, Meta(ge=0, le=1)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]


@dataclass(frozen=True)
class TextScore:
    """Perplexity on one text; with `original`, against the original's."""

    perplexity: Positive
    tokens: Size
    """Tokens scored."""
    window: Size
    text: str
    """The files or the data set."""
    text_sha256: str
    windows_sha256: str
    """The hash of the ids in all windows (8 bytes each): only over the same ones are perplexities
    compared."""
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

    def __post_init__(self) -> None:
        if (self.original is None) != (self.ratio is None):
            raise ValueError("has one of original and ratio and not the other")


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one task; with `original`, against the original's."""

    stderr: Amount
    """Of the accuracy by `metric`."""
    n: Size
    """Number of questions."""
    metric: Literal["acc", "acc_norm"]
    chance: Annotated[float, Meta(ge=0, lt=1)]
    questions_sha256: str
    right: Annotated[str, Meta(pattern="^[01]+$")]
    """A digit a question, 1 where it was answered right by `metric`."""
    acc: Share | None = None
    acc_norm: Share | None = None
    original: Share | None = None
    """The original's accuracy on the same questions."""
    kept: Finite | None = None
    """`(accuracy − chance) / (original − chance)`; None where the original is not above chance."""
    kept_stderr: Amount | None = None
    """None for a single question."""
    shots: Count = 0
    """Solved questions in front of each."""

    def __post_init__(self) -> None:
        if getattr(self, self.metric) is None:
            raise ValueError(f"has no {self.metric}")
        if len(self.right) != self.n:
            raise ValueError(f"has {len(self.right)} answers to {self.n} questions")
        if self.original is None and self.kept is not None:
            raise ValueError("has kept and no original")

    @property
    def accuracy(self) -> float:
        """That of `metric`."""
        return float(getattr(self, self.metric))


@dataclass(frozen=True)
class Scores:
    """What a model scores on a suite."""

    suite: str
    texts: dict[str, TextScore] = field(default_factory=dict)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    general_ratio: Positive | None = None
    """Geometric mean over the texts of pruned / original perplexity."""
    general_ratio_stderr: Amount | None = None
    kept: Finite | None = None
    """Mean over the tasks of what is kept of the original's accuracy above chance."""
    kept_stderr: Amount | None = None

    def __post_init__(self) -> None:
        parts = [*self.texts.values(), *self.tasks.values()]
        if len({part.original is None for part in parts}) > 1:
            raise ValueError("compares some texts and tasks with an original and not others")
        for name, of_parts in (
            ("general_ratio", [text.ratio for text in self.texts.values()]),
            ("kept", [task.kept for task in self.tasks.values()]),
        ):
            if (getattr(self, name) is None) != (set(of_parts) <= {None}):
                raise ValueError(f"has {name} and not that of its parts, or the reverse")

    @property
    def is_against_original(self) -> bool:
        """Whether an original's scores stand beside them."""
        return any(
            part.original is not None for part in (*self.texts.values(), *self.tasks.values())
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of windows of every text, and of questions of every task."""
        windows = {f"texts.{name}": len(text.losses) for name, text in self.texts.items()}
        return windows | {f"tasks.{name}": task.n for name, task in self.tasks.items()}
