"""What `disp-llm recover` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from disp_llm.config.checks import (
    require_default,
    require_file_size,
    require_paths,
    require_positive,
)
from disp_llm.config.errors import InputError
from disp_llm.config.frozen import Shard
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.names import Resume, Tracker
from disp_llm.config.parts import MachineConfig, PerplexityConfig, TextConfig
from disp_llm.config.words import OwnWordsConfig


def _weights_defaults() -> TrainingConfig:
    return TrainingConfig(
        length=512,
        batch=4,
        learning_rate=5e-4,
        warmup=0.05,
        clip=1.0,
        checkpoint_every=100,
    )


@dataclass(frozen=True)
class RecoverConfig:
    """Win quality back: train the weights that pruning kept, with the original as teacher."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model; or any model."""
    output_dir: Path = Path("recovered")
    """The new run folder; the model is its model/."""
    how: Literal["full", "lora"] = "full"
    """Train all weights of the blocks, or low-rank adapters that are merged at the end."""
    rank: int = 32
    """Rank of the LoRA adapters."""
    teacher: str = ""
    """Hub id, folder or smollm2-135m. Default: the original that the folder's card names."""
    weights_from: str = ""
    """A larger size of the same run, recovered already: its folder, such as recovered/model.
    Training begins with its weights, wherever this size keeps them."""
    tokens: int = 1_000_000
    """Number of tokens to train on."""
    shard: Shard = "auto"
    """How several processes hold student and teacher: all of both in each (no), a part in each,
    also of gradients and moments (full), or all on every node and a part in each of its processes
    (hybrid). auto = full where they would not fit otherwise."""
    max_shard_size: str = "5GB"
    """Largest size of one file of weights."""
    suite: str = ""
    """A suite of texts and tasks, on which the model is measured before and after, against the
    original: general, commonsense, or a .toml file."""
    resume: Resume = False
    """Continue the run in --output-dir; `auto` begins one where there is none."""
    anyway: bool = False
    """Go on although the model, a text or a file of the run is not what it was."""
    json: bool = False
    """Print one JSON object on standard output."""
    track: Tracker = "none"
    """Also log every step to a tracker, which must be installed."""
    training: TrainingConfig = field(default_factory=_weights_defaults)
    text: TextConfig = field(default_factory=TextConfig)
    words: OwnWordsConfig = field(default_factory=OwnWordsConfig)
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def steps(self, processes: int) -> int:
        """Optimiser steps in which all processes together read the tokens."""
        return -(-self.tokens // (self.training.tokens_per_step * processes))

    def validate(self) -> None:
        """Refuses values that no recovery can use, before anything is loaded.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        require_positive(tokens=self.tokens, rank=self.rank)
        require_file_size(max_shard_size=self.max_shard_size)
        self.words.validate(self.text.may_be_written)
        for part in (self.training, self.text, self.evaluation, self.machine):
            part.validate()
        if not (self.training.distill or self.suite or self.text.may_be_written):
            what = "would neither teach nor write nor be measured"
            require_default(self, ["teacher"], what, "leave it out, or let `distill` be above 0")
        if self.how == "full":
            what = "is of adapters, and all weights learn"
            require_default(self, ["rank"], what, "leave it out, or give `how` lora")
        if self.how == "lora" and self.training.weight_optimizer != "adamw":
            raise InputError(
                "steps weights, and adapters learn in their place",
                field="weight_optimizer",
                hint="leave it out, or `how`",
            )
