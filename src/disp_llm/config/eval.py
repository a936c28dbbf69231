"""What `disp-llm eval` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import AnyTokens, Number, Word
from disp_llm.config.effect import Use, check_settings, not_with
from disp_llm.config.names import Template
from disp_llm.config.parts import MachineConfig, PerplexityConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity and tasks of a model or of an exported folder."""

    USES: ClassVar = (
        not_with(
            "suite",
            "text text_field dataset examples template tasks shots limit context windows",
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
            "limit",
            when=lambda config: config.tasks or config.examples,
            what="counts questions, and none is asked",
            instead="give `tasks` or `examples`",
        ),
        not_with("text", "dataset examples"),
        not_with("dataset", "examples"),
    )

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    text: tuple[Path, ...] = ()
    """Text to measure on: files or folders. Default: the held-out tenth of the embedded
    speeches."""
    text_field: Word = "text"
    """Key or column that holds the text in .jsonl, .json, .csv and .parquet files."""
    dataset: str = ""
    """Hub data set in place of --text: NAME:CONFIG:SPLIT. The default split is test."""
    examples: tuple[Path, ...] = ()
    """Examples in place of --text: the perplexity of answers, and what the model's own answers
    score."""
    template: Template = "auto"
    """How an example is written: by the tokenizer's chat template, or as prompt and answer. auto
    takes the template where there is one."""
    tasks: tuple[Word, ...] = ()
    """Tasks or groups of lm-evaluation-harness, such as arc_easy or mmlu; paper is the paper's
    five."""
    shots: Number | None = None
    """Solved questions before each question of --tasks. Default: the task's own number."""
    limit: AnyTokens = 0
    """Questions of each task, and examples that are answered; 0 = all."""
    suite: str = ""
    """Texts and tasks in place of these: general, commonsense, or a .toml file."""
    against: str = ""
    """What --suite compares with. Default: the original of an exported folder."""
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def reads_text(self) -> bool:
        """Whether perplexity is measured."""
        return bool(self.text or self.dataset or self.examples or not self.tasks)

    def validate(self) -> None:
        """Refuses text that is named twice, and what nothing reads."""
        check_settings(self)
