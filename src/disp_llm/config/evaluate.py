"""What `disp-llm eval` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from disp_llm.config.checks import require_default, require_not_negative, require_paths
from disp_llm.config.errors import InputError
from disp_llm.config.names import Template
from disp_llm.config.parts import MachineConfig, PerplexityConfig


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity and tasks of a model or of an exported folder."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    text: tuple[Path, ...] = ()
    """Text to measure on: files or folders, as `prune` reads them. Default: the embedded speeches'
    held-out tenth."""
    text_field: str = "text"
    """Key of .jsonl and .json objects, or column of .csv and .parquet files, that holds the
    text."""
    dataset: str = ""
    """A hub data set in place of --text, as NAME:CONFIG:SPLIT (default split: test)."""
    examples: tuple[Path, ...] = ()
    """Examples to measure the perplexity of answers on, in place of --text: files as `prune` reads
    them."""
    processor_data: tuple[Path, ...] = ()
    """Pictures with prompts and answers to measure the perplexity of answers on, likewise."""
    template: Template = "auto"
    """How an example is written: by the chat template of the tokenizer, or the prompt and then the
    answer; auto takes the template where there is one."""
    metric: str = ""
    """Let the model answer the --examples, and score what it writes: exact_match, f1 (of words), or
    a metric of an installed package (entry points `disp_llm.metrics`)."""
    answer_tokens: int = 0
    """Most tokens of such an answer; 0 = a quarter more than the longest of the examples has."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, such as arc_easy piqa, and groups of them, such as mmlu;
    `paper` is the paper's five. Without --text or --dataset, perplexity is then not measured."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE: read a local JSON-lines file in place of that task's hub data set."""
    shots: int | None = None
    """Solved questions that stand in front of every question of the --tasks. Default: as many as
    the task says itself, mostly none."""
    limit: int = 0
    """Number of questions of each task (in a group, of each task in it), and of examples that are
    answered; 0 = all."""
    suite: str = ""
    """A suite of texts and tasks in place of all these: general, commonsense, or a .toml
    file."""
    dense: str = ""
    """With --suite, what to compare with: the original model, the .json file that this command
    printed of it, or auto: what an exported folder was made from."""
    json: bool = False
    """Print one JSON object on standard output."""
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses windows that score nothing, text that is named twice, and what a suite says.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        self.evaluation.validate()
        self.machine.validate()
        if self.text and self.dataset:
            raise InputError(
                "given together with `text`", field="dataset", hint="choose one of them"
            )
        for name in ("examples", "processor_data"):
            if getattr(self, name) and (self.text or self.dataset):
                raise InputError("given together with a text", field=name, hint="choose one")
        if self.examples and self.processor_data:
            raise InputError(
                "given together with `examples`", field="processor_data", hint="choose one of them"
            )
        if self.metric and not (self.examples or self.processor_data):
            raise InputError("scores answers to examples", field="metric", hint="give `examples`")
        require_not_negative(
            limit=self.limit, answer_tokens=self.answer_tokens, shots=self.shots or 0
        )
        if self.answer_tokens and not self.metric:
            raise InputError("is of scored answers", field="answer_tokens", hint="give `metric`")
        if self.limit and not (self.tasks or self.metric or self.suite):
            what, hint = "counts questions, and none is asked", "give `tasks` or `metric`"
            raise InputError(what, field="limit", hint=hint)
        self._require_task_data()
        if self.dense and not self.suite:
            raise InputError("is for a suite", field="dense", hint="give `suite` too")
        self._require_suite_alone()
        if self.shots is not None and not self.tasks:
            raise InputError("is for tasks", field="shots", hint="give `tasks` too")
        if not (self.examples or self.processor_data):
            what = "is for examples, and there are none"
            require_default(self, ["template"], what, "leave it out, or give `examples`")

    def _require_task_data(self) -> None:
        """Files for tasks that are asked for, each as NAME=FILE."""
        if self.task_data and not (self.tasks or self.suite):
            raise InputError("is for tasks", field="task_data", hint="give `tasks`")
        for entry in self.task_data:
            if not all(entry.partition("=")):
                raise InputError(f"{entry}", field="task_data", hint="give NAME=FILE")

    def _require_suite_alone(self) -> None:
        """A suite says all that these settings say."""
        if not self.suite:
            return
        usual = EvalConfig(self.model)
        given = [name for name in BESIDE_SUITE if getattr(self, name) != getattr(usual, name)]
        given += [
            name
            for name in ("context", "stride", "windows")
            if getattr(self.evaluation, name) != getattr(usual.evaluation, name)
        ]
        if given:
            raise InputError(
                "given together with `suite`", field=given[0], hint="write it into the suite's file"
            )


BESIDE_SUITE = (
    *("text", "text_field", "dataset", "examples", "processor_data", "template"),
    *("metric", "answer_tokens", "tasks", "task_data", "shots", "limit"),
)
"""Settings that a suite has of its own."""
