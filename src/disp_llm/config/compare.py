"""What `disp-llm compare` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from disp_llm.config.checks import (
    require_at_least,
    require_not_negative,
    require_paths,
    require_sizes,
)
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.names import IN_TIME, VARIANTS, compared_methods, mask_methods
from disp_llm.config.parts import MachineConfig, PerplexityConfig, ScoreConfig, TextConfig
from disp_llm.config.words import OwnWordsConfig


@dataclass(frozen=True)
class CompareConfig:
    """Methods side by side: same model, text, budget, exporter and evaluation."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, local folder, GGUF file, or smollm2-135m."""
    methods: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="{all," + ",".join(compared_methods()) + "} ...")
    ] = ("all",)
    """The methods to compare; `learned` is ours. Methods that choose masks leave run folders with
    exported models; baselines that do more than drop dimensions are measured and not written."""
    keep: tuple[float, ...] = (0.8, 0.7, 0.5)
    """Share of block parameters that is kept, in (0, 1]."""
    frontier: bool = False
    """Measure the original as rows of its own too, in the dtype of the run, in int8 and in int4
    (which needs torchao), draw every row against its time and its memory, and say which are
    dominated."""
    target: tuple[float, ...] = ()
    """Sizes of the method `latency`, as shares of the original's time for a prompt, in (0, 1]."""
    quantise: tuple[str, ...] = ()
    """Methods that choose masks whose models are also measured in int8 and int4."""
    align: int = 1
    """Widths of the models that methods that choose masks write are multiples of this number; int4
    takes multiples of 32. With 1 dimensions are pruned one by one; `prune` on a CPU has 32."""
    output_dir: Path = Path("comparison")
    """The folder of compare.json, compare.md, the pictures and the run folders. Rows that are there
    are not made again."""
    steps: int = 150
    """Optimiser steps of the methods that learn."""
    length: int = TrainingConfig.length
    """Tokens of their learning windows."""
    batch: int = TrainingConfig.batch
    """Learning windows of a step."""
    suite: str = ""
    """A suite of texts and tasks, on which the original and every model are measured besides:
    general, commonsense, or a .toml file."""
    rounds: int = 7
    """Number of times that each model is timed, in turn with the original; 0 = not timed."""
    anyway: bool = False
    """Go on although the model, a text or a file of the comparison is not what it was."""
    json: bool = False
    """Print one JSON object on standard output."""
    text: TextConfig = field(default_factory=TextConfig)
    words: OwnWordsConfig = field(default_factory=OwnWordsConfig)
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses what no comparison can use.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        self.machine.validate()
        known = ["all", *compared_methods()]
        for name in set(self.methods) - set(known):
            raise InputError(
                f"no method '{name}'{nearest(name, known)}",
                field="methods",
                hint=f"use one of {', '.join(known)}",
            )
        require_sizes(keep=self.keep)
        require_not_negative(steps=self.steps, rounds=self.rounds)
        require_at_least(2, length=self.length)
        require_at_least(1, batch=self.batch, align=self.align)
        self._validate_frontier()
        self.words.validate(self.text.may_be_written)
        for part in (self.scores, self.text, self.evaluation):
            part.validate()

    def _validate_frontier(self) -> None:
        """Refuses sizes without their method, or a method without its sizes, and models that no
        folder holds."""
        if self.target:
            require_sizes(target=self.target)
        if self.target and not {"all", IN_TIME} & set(self.methods):
            raise InputError(
                f"is of the method {IN_TIME}", field="target", hint=f"add {IN_TIME} to `methods`"
            )
        if IN_TIME in self.methods and not self.target:
            raise InputError(
                f"{IN_TIME} has no sizes", field="methods", hint="give `target`, such as 0.8 0.65"
            )
        if self.frontier and not self.rounds:
            raise InputError(
                "has no times without rounds", field="frontier", hint="give 1 or more `rounds`"
            )
        masks = [*mask_methods(), *VARIANTS]
        for name in set(self.quantise) - set(masks):
            raise InputError(
                f"'{name}' writes no model folder{nearest(name, masks)}",
                field="quantise",
                hint=f"use some of {', '.join(masks)}",
            )
