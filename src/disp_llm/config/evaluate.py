"""What `disp-llm eval` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from disp_llm.config.checks import require_not_negative, require_paths
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig, PerplexityConfig


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity and zero-shot tasks of a model or of an exported folder."""

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
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, such as arc_easy piqa; `paper` is the paper's five. Without
    --text or --dataset, perplexity is then not measured."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE: read a local JSON-lines file in place of that task's hub data set."""
    limit: int = 0
    """Number of questions of each task; 0 = all."""
    json: bool = False
    """Print one JSON object on standard output."""
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses windows that score nothing, and text that is named twice.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        self.evaluation.validate()
        if self.text and self.dataset:
            raise InputError(
                "given together with `text`", field="dataset", hint="choose one of them"
            )
        require_not_negative(limit=self.limit)
