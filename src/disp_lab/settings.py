"""Settings of `disp-llm compare`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_lab.names import BASELINES, IN_TIME, mask_methods
from disp_lab.variants import VARIANTS, compared_methods
from disp_llm.config.bounds import (
    Batch,
    Multiple,
    Rounds,
    Size,
    Some,
    Steps,
    Window,
    Word,
)
from disp_llm.config.checks import Use
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.names import SELF
from disp_llm.config.parts import (
    MachineConfig,
    PerplexityConfig,
    ScoreConfig,
    TextConfig,
    require_sizes,
)
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class CompareConfig:
    """Methods side by side: same model, text, budget, exporter and evaluation."""

    # Steps and calibration have no `Use`: a method that reads them may join the table later.
    USES: ClassVar = (
        Use(
            "fit",
            when=lambda config: {"all", IN_TIME} & set(config.methods),
            what=f"is of the method {IN_TIME}",
            instead=f"add {IN_TIME} to `methods`",
        ),
        Use(
            "frontier",
            when=lambda config: config.rounds,
            what="has no times without rounds",
            instead="give 1 or more `rounds`",
        ),
    )

    USUAL: ClassVar = (
        "methods keep text eval_text output_dir steps length batch suite frontier fit rounds "
        "seed device"
    )
    """Settings that a short help lists."""

    model: Annotated[Word, POSITIONAL]
    """Hub id, local folder, GGUF file, or smollm2-135m."""
    methods: Annotated[tuple[Word, ...], Some] = ("all",)
    """The methods to compare; `learned` is ours. Methods that choose masks leave run folders with
    exported models; baselines that do more than drop dimensions are measured and not written."""
    keep: tuple[Size, ...] = (0.8, 0.7, 0.5)
    """Shares of block parameters to keep, in (0, 1]."""
    frontier: bool = False
    """Add the original in the run's dtype, int8 and int4 (torchao) as rows, and draw every row
    against time and memory."""
    fit: tuple[Size, ...] = ()
    """Sizes of the method latency: shares of the original's time for a prompt, in (0, 1]."""
    quantise: tuple[Word, ...] = ()
    """Methods whose models are also measured in int8 and int4."""
    align: Multiple = 1
    """Widths of the models that methods that choose masks write are multiples of this number; int4
    takes multiples of 32. With 1 dimensions are pruned one by one; `prune` on a CPU has 32."""
    output_dir: Path = Path("comparison")
    """Folder of compare.json, compare.md, pictures and runs; rows that are there are not made
    again."""
    steps: Steps = 150
    """Optimiser steps of the methods that learn."""
    length: Window = TrainingConfig.length
    """Tokens of their learning windows."""
    batch: Batch = TrainingConfig.batch
    """Learning windows of a step."""
    suite: str = ""
    """Texts and tasks to measure every model on: general, commonsense, or a .toml file."""
    rounds: Rounds = 7
    """Times that each model is timed in turn with the original; 0 = not timed."""
    anyway: bool = False
    """Go on although the model or a file has changed."""
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses settings that no comparison can use.

        Raises:
            InputError: naming the field.
        """
        for name in {*VARIANTS, *BASELINES} & {*mask_methods()}:
            raise InputError(
                f"'{name}' is a row already", field="methods", hint="call your method otherwise"
            )
        known = ["all", *compared_methods()]
        for name in set(self.methods) - set(known):
            raise InputError(
                f"no method '{name}'{nearest(name, known)}",
                field="methods",
                hint=f"use one of {', '.join(known)}",
            )
        require_sizes("keep", self.keep)
        if self.fit:
            require_sizes("fit", self.fit)
        if IN_TIME in self.methods and not self.fit:
            raise InputError(
                f"{IN_TIME} has no sizes", field="methods", hint="give `fit`, such as 0.8 0.65"
            )
        masks = [*mask_methods(), *VARIANTS]
        for name in set(self.quantise) - set(masks):
            raise InputError(
                f"'{name}' writes no model folder{nearest(name, masks)}",
                field="quantise",
                hint=f"use some of {', '.join(masks)}",
            )
        if Path(SELF) in self.text.learns_from:
            what = "is missing, and all methods learn from one text"
            raise InputError(what, field="text", hint="name files or a data set")
