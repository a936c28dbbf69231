"""Groups of settings that several commands share, as frozen dataclasses; no torch here.

A field's docstring is its `--help`. `USES` and `validate` say what no run can use.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from disp_llm.config.bounds import (
    AnyTokens,
    Batch,
    Length,
    Number,
    Seed,
    Sequences,
    Some,
    Weight,
    Window,
    Word,
)
from disp_llm.config.checks import Use, not_with, only_with
from disp_llm.config.errors import InputError
from disp_llm.config.names import SELF, BudgetKind, Template
from disp_llm.config.targets import COUNTED, Target, require_of_budget

logger = logging.getLogger(__name__)


def require_sizes(field: str, sizes: tuple[float | str, ...]) -> None:
    """Refuses sizes that results and files would call the same, or none at all."""
    if not sizes:
        raise InputError("no size is given", field=field, hint="give one or more, such as 0.5")
    if len({Target.of(size).name for size in sizes}) < len(sizes):
        what = "a size is repeated, to six digits"
        raise InputError(what, field=field, hint="give each size once")


@dataclass(frozen=True)
class TextConfig:
    """Where the tokens come from."""

    USES: ClassVar = (
        Use(
            "self_tokens",
            when=lambda config: config.may_be_written,
            what="is of text that the model writes, and it writes none",
            instead=f"add `text` {SELF}",
        ),
        not_with("text", "dataset"),
        not_with("eval_text", "eval_dataset eval_examples"),
        not_with("eval_dataset", "eval_examples"),
        only_with("examples eval_examples", "template", "is of examples"),
        Use(
            "eval_text",
            when=lambda config: Path(SELF) not in config.eval_text or Path(SELF).exists(),
            what="cannot be text that the model writes",
            instead="name a file",
        ),
        Use(
            "weights",
            when=lambda config: len(config.weights) == config.drawn,
            what="must be as many as there are texts ({0.drawn}; all examples are one)",
            instead="give one number above 0 for each",
        ),
    )

    text: tuple[Path, ...] = ()
    """Text to learn from: files, folders, or a name. `self` is text the original writes,
    `speeches` the embedded English, `general` a mixture of hub data sets, FILE.toml a mixture of
    yours. Default: self, which `compare` refuses."""
    text_field: Word = "text"
    """Key or column that holds the text in .jsonl, .json, .csv and .parquet files."""
    weights: tuple[Weight, ...] = ()
    """How often each text is drawn from, relative to the others. Default: by length."""
    dataset: str = ""
    """Hub data set in place of --text: NAME:CONFIG or NAME:CONFIG:SPLIT. The default split is
    train."""
    self_tokens: AnyTokens = 0
    """Tokens that the model writes; 0 = as many as are read."""
    eval_text: tuple[Path, ...] = ()
    """Text to measure on. Default: the last tenth of the learning text, which is then not learned
    from."""
    eval_dataset: str = ""
    """Hub data set in place of --eval-text. The default split is test."""
    examples: tuple[Path, ...] = ()
    """Examples of a task to learn from, alone or beside --text: .jsonl, .json, .csv or .parquet
    files of prompts and answers. Only answers count; --weights takes one number more for them."""
    eval_examples: tuple[Path, ...] = ()
    """Examples to measure answers on. Default: every tenth of --examples, which is then not
    learned from."""
    template: Template = "auto"
    """How an example is written: by the tokenizer's chat template, or as prompt and answer. auto
    takes the template where there is one."""

    @property
    def learns_from_text(self) -> bool:
        """Whether a text is named."""
        return bool(self.text or self.dataset)

    @property
    def learns_from(self) -> tuple[Path, ...]:
        """The texts, or the one where nothing is named; none where there is a data set, or where
        there are examples alone."""
        return self.text or (() if self.dataset or self.examples else (Path(SELF),))

    @property
    def may_be_written(self) -> bool:
        """Whether the model itself writes some of the text."""
        return Path(SELF) in self.learns_from

    @property
    def has_evaluation(self) -> bool:
        """Whether what is measured on is not a part of the learning text."""
        return bool(self.eval_text or self.eval_dataset or self.eval_examples or self.examples)

    @property
    def drawn(self) -> int:
        """How many texts are drawn from; all examples are one."""
        return len(self.text) + bool(self.examples and self.dataset) + bool(self.examples)

    def validate(self) -> None:
        """Warns of text that is both learned from and measured on."""
        learned = {path.absolute() for path in self.text}
        for path in self.eval_text:
            if path.absolute() in learned:
                logger.warning("`eval_text` %s is learned from: it says little of other text", path)


@dataclass(frozen=True)
class PerplexityConfig:
    """How perplexity is measured."""

    context: Window = 1024
    """Tokens of an evaluation window; its first token is not predicted."""
    windows: Number = 16
    """Evaluation windows from the start of the text; 0 = all."""

    @property
    def tokens(self) -> int:
        """Tokens of all windows; 0 = all there are."""
        return self.windows * self.context


@dataclass(frozen=True)
class ScoreConfig:
    """The calibration pass that scores every entry of every site."""

    calibration_sequences: Sequences = 24
    """Sequences that the scores are taken from, each with a backward pass of its own."""
    calibration_length: Window = 512
    """Tokens of a calibration sequence."""

    @property
    def tokens(self) -> int:
        """Tokens of all calibration sequences together."""
        return self.calibration_sequences * self.calibration_length


@dataclass(frozen=True)
class BudgetConfig:
    """What is limited, where it is not the number of block parameters."""

    USES: ClassVar = (
        Use(
            "workload",
            when=lambda config: config.kind == "latency",
            what="is of a `budget` of latency, and {0.kind} does not use it",
            instead="name such a `budget`",
        ),
        Use(
            "workload_length workload_batch",
            when=lambda config: config.kind in ("latency", "memory"),
            what="is of a `budget` of latency or memory, and {0.kind} does not use it",
            instead="name such a `budget`",
        ),
    )

    budget: BudgetKind = "params"
    """What --fit limits: total parameters, flops of the linear layers for a token, bytes of all
    weights, memory of weights and KV cache, latency of --workload here, or active block parameters
    of a token. With params, the default, --fit may choose tokens and bits too."""
    fit: tuple[float | str, ...] = ()
    """Size in place of --keep, for what you have: 100MB, 80ms, 300M parameters, or a share of the
    original's bytes, in (0, 1]. Alone, megabytes and parameters also decide how many tokens stay
    and, with megabytes, in how many bits weights are stored."""
    workload: Annotated[tuple[Literal["prefill", "decode"], ...], Some] = ("prefill",)
    """What latency times: a prompt (prefill), one token after it (decode), or both."""
    workload_length: Length = 512
    """Tokens of that prompt, and in the KV cache."""
    workload_batch: Batch = 1
    """Sequences that are read or written together."""

    @property
    def kind(self) -> BudgetKind:
        """What the sizes are of."""
        if not self.fit or self.budget != "params":
            return self.budget
        counts = Target.of(self.fit[0]).counts
        return next((kind for kind, counted in COUNTED.items() if counted == counts), "bytes")

    @property
    def decides(self) -> bool:
        """Whether tokens and bits are decided too."""
        return bool(self.fit) and self.budget == "params" and self.kind != "latency"

    def require_sizes(self, keep: tuple[float, ...]) -> None:
        """Refuses a budget without its sizes, or sizes of another budget."""
        if self.kind == "params":
            require_sizes("keep", keep)
            return
        for size in self.sizes(()):
            require_of_budget(size, self.kind)
            if size.unit and len(self.workload) > 1 and self.kind == "latency":
                raise InputError(
                    f"{size} is the time of one thing, and {' and '.join(self.workload)} are timed",
                    field="fit",
                    hint="name one of them as `workload`, or give shares",
                )
        require_sizes("fit", self.fit)
        if self.decides and len(self.fit) > 1:
            raise InputError(
                "tokens and bits are decided for one size",
                field="fit",
                hint="give one, or name a `budget`",
            )

    def sizes(self, keep: tuple[float, ...]) -> tuple[Target, ...]:
        """The sizes that are to be written, of what the budget limits."""
        return tuple(map(Target.of, keep if self.kind == "params" else self.fit))

    def size_name(self, size: Target) -> str:
        """`0.6`, `bytes-0.6`, `memory-8192x8-6GB` or `latency-prefill-512-80ms`: what a size of a
        run is called in results and file names."""
        if self.kind == "params":
            return size.name
        of = {"latency": f"{'+'.join(self.workload)}-{self._tokens}-", "memory": f"{self._tokens}-"}
        return f"{self.kind}-{of.get(self.kind, '')}{size.name}"

    @property
    def _tokens(self) -> str:
        batch = f"x{self.workload_batch}" if self.workload_batch > 1 else ""
        return f"{self.workload_length}{batch}"


KEEP_OR_TARGET = Use(
    "keep",
    when=lambda config: config.budget.kind == "params",
    what="is of block parameters, and the `budget` is {0.budget.kind}",
    instead="leave `budget` and `fit` out",
)
"""Of commands with both."""


@dataclass(frozen=True)
class VocabularyConfig:
    """Which tokens stay."""

    USES: ClassVar = (
        only_with("vocabulary", "keep_tokens", "is of a vocabulary that is cut, and none is"),
    )

    vocabulary: AnyTokens = 0
    """Tokens to keep, those that the learning text uses most: a text of other words takes more
    tokens. 0 = all. Figures stay by token of the whole vocabulary."""
    keep_tokens: tuple[Path, ...] = ()
    """Files of words, one a line, whose tokens stay in any case."""


Dtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class PlaceConfig:
    """Where the work is done."""

    device: str = "auto"
    """Device to run on: cpu, cuda, cuda:1, or auto, which takes a GPU where there is one."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto takes bfloat16 where the hardware computes in it."""


@dataclass(frozen=True)
class MachineConfig(PlaceConfig):
    """The same, of work that draws random numbers."""

    seed: Seed = 0
    """Seed of every random draw."""
