"""What `disp-llm recover` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import Tokens, Word
from disp_llm.config.checks import Use
from disp_llm.config.engines import DEMANDS, Demands
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.names import Bits, Engine, Resume, Tracker
from disp_llm.config.parts import MachineConfig, PerplexityConfig, TextConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class RecoverConfig:
    """Win quality back: train the weights that pruning kept, with the original as teacher."""

    USES: ClassVar = (
        Use(
            "teacher",
            when=lambda config: config.training.distill or config.text.may_be_written,
            what="would neither teach nor write",
            instead="let `distill` be above 0",
        ),
        Use(
            "bits weights_from weight_optimizer",
            when=lambda config: config.training.shard != "full",
            what="is of weights that lie in every process as a whole",
            instead="give a `shard` of no",
        ),
    )
    USUAL: ClassVar = (
        "text eval_text examples output_dir teacher weights_from tokens learning_rate bits suite "
        "seed device resume"
    )
    """Settings that a short help lists."""

    model: Annotated[Word, POSITIONAL]
    """Exported folder, such as run/keep-0.5, or any model."""
    output_dir: Path = Path("recovered")
    """The new run folder; the model is in its model/."""
    teacher: str = ""
    """Model that teaches. Default: the original that the card names."""
    weights_from: str = ""
    """Larger size, recovered already, whose weights training begins with, such as
    recovered/model."""
    tokens: Tokens = 1_000_000
    """Tokens to train on."""
    bits: Bits = "as-is"
    """Train with the rounding of int8 or int4, by which `convert` then stores the model; figures
    are of it so rounded. It takes a --shard of no."""
    for_: Engine = "transformers"
    """Program that is to run the result, as `prune` has them: write its format beside the
    model."""
    suite: str = ""
    """Texts and tasks to measure the model on before and after: general, commonsense, or a .toml
    file."""
    resume: Resume = False
    """Continue the run in --output-dir; auto starts one where there is none."""
    anyway: bool = False
    """Go on although the model or a file has changed."""
    track: Tracker = "none"
    """Tracker that also logs every step; it must be installed."""
    training: TrainingConfig = TrainingConfig(batch=4, learning_rate=1.5e-4)  # noqa: RUF009  (frozen)
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def demands(self) -> Demands:
        """What the program asks for that is to run the result."""
        return DEMANDS[self.for_]

    def steps(self, processes: int) -> int:
        """Optimiser steps in which all processes together read the tokens."""
        return -(-self.tokens // (self.training.tokens_per_step * processes))
