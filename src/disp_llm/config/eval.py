"""What `disp-llm eval` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import AnyTokens, Number, Word, require_declared
from disp_llm.config.effect import Use, require_used
from disp_llm.config.errors import InputError
from disp_llm.config.names import Template
from disp_llm.config.parts import MachineConfig, PerplexityConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity and tasks of a model or of an exported folder."""

    USES: ClassVar = (
        Use(
            "text text_field dataset examples template tasks shots limit context windows",
            when=lambda config: not config.suite,
            what="given together with `suite`",
            instead="write it into the suite's file",
        ),
        Use(
            "against",
            when=lambda config: config.suite,
            what="is for a suite",
            instead="give `suite`",
        ),
        Use("shots", when=lambda config: config.tasks, what="is for tasks", instead="give `tasks`"),
        Use(
            "template",
            when=lambda config: config.examples,
            what="is for examples, and there are none",
            instead="give `examples`",
        ),
        Use(
            "limit",
            when=lambda config: config.tasks or config.examples,
            what="counts questions, and none is asked",
            instead="give `tasks` or `examples`",
        ),
        Use(
            "text_field",
            when=lambda config: config.text or config.dataset,
            what="is of a text, and none is named",
            instead="name one",
        ),
        Use(
            "context windows",
            when=lambda config: config.reads_text,
            what="is of perplexity, and tasks alone are asked for",
            instead="name a text",
        ),
    )

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    text: tuple[Path, ...] = ()
    """Text to measure on: files or folders, as `prune` reads them. Default: the embedded speeches'
    held-out tenth."""
    text_field: Word = "text"
    """Key of .jsonl and .json objects, or column of .csv and .parquet files, that holds the
    text."""
    dataset: str = ""
    """A hub data set in place of --text, as NAME:CONFIG:SPLIT (default split: test)."""
    examples: tuple[Path, ...] = ()
    """Examples in place of --text, in files as `prune` reads them: perplexity of the answers, and
    what the model's own answers score."""
    template: Template = "auto"
    """How an example is written: by the chat template of the tokenizer, or the prompt and then the
    answer; auto takes the template where there is one."""
    tasks: tuple[Word, ...] = ()
    """Tasks of lm-evaluation-harness, such as arc_easy piqa, and groups of them, such as mmlu;
    `paper` is the paper's five. Without --text or --dataset, perplexity is then not measured."""
    shots: Number | None = None
    """Solved questions that stand in front of every question of the --tasks. Default: as many as
    the task says itself, mostly none."""
    limit: AnyTokens = 0
    """Number of questions of each task (in a group, of each task in it), and of examples that are
    answered; 0 = all."""
    suite: str = ""
    """A suite of texts and tasks in place of all these: general, commonsense, or a .toml
    file."""
    against: str = ""
    """With --suite, what to compare with: the original model, or the .json file that this command
    printed of it. Default: the original that an exported folder names."""
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def reads_text(self) -> bool:
        """Whether perplexity is measured."""
        return bool(self.text or self.dataset or self.examples or not self.tasks)

    def validate(self) -> None:
        """Refuses windows that skip tokens, text that is named twice, and what nothing reads."""
        require_declared(self)
        require_used(self)
        if self.text and self.dataset:
            raise InputError(
                "given together with `text`", field="dataset", hint="choose one of them"
            )
        if self.examples and (self.text or self.dataset):
            raise InputError("given together with a text", field="examples", hint="choose one")
