"""How something is trained, masks or weights, and how masks are learned."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from disp_llm.config.bounds import (
    AnyRank,
    AnyRate,
    Batch,
    Factor,
    Minutes,
    Rate,
    Share,
    Shift,
    Steps,
    Temperature,
    TwoShares,
    Window,
)
from disp_llm.config.checks import Use, not_with
from disp_llm.config.names import Estimator, LearningRateSchedule, Parametrisation

Shard = Literal["auto", "no", "full"]


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop, whatever it trains."""

    length: Window = 512
    """Tokens of a training window. Short windows cost quality on text of other kinds."""
    batch: Batch = 2
    """Windows of a batch, in each process."""
    learning_rate: Rate = 0.05
    """Peak of AdamW's step size: of the masks, or of the weights in `recover`, which multiplies it
    by their size, as a multiple of SmolLM2-135M's, so that one value suits every model."""
    betas: TwoShares = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    weight_optimizer: Literal["adamw", "muon"] = "adamw"
    """What steps the linear layers of the blocks where they learn: adamw, or muon (arXiv
    2502.16982), a quarter slower on a CPU."""
    weight_decay: AnyRate = 0.0
    """AdamW's decoupled weight decay."""
    schedule: LearningRateSchedule = "cosine"
    """How the step size falls from its peak: cosine to a tenth, linear to zero (arXiv
    2502.15938)."""
    distill: Share = 0.5
    """Share of the loss that is divergence from the original, in place of cross-entropy. 0 takes a
    third less time and learns the vocabulary of one text."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Run the blocks, or of `recover` the loss alone, through torch.compile; auto does where that
    wins time."""
    shard: Shard = "auto"
    """How processes hold the weights: each all of them (no), or each a part (full). auto divides
    them where they would not fit; `recover` does so only if asked."""
    gradient_checkpointing: Literal["auto", "yes", "no"] = "auto"
    """Run each block again in the backward pass: less memory, a third more time. auto does where
    learning would not fit; `recover` does so only if asked."""

    @property
    def recomputes(self) -> bool:
        """Whether blocks run again in the backward pass; not where nothing has settled it."""
        return self.gradient_checkpointing == "yes"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step in each process."""
        return self.length * self.batch


@dataclass(frozen=True)
class LearnConfig:
    """What is learned about the masks, and beside them."""

    USES: ClassVar = (
        not_with("minutes", "steps"),
        Use(
            "shift penalty",
            when=lambda config: config.estimator != "projected",
            what="is of estimators that draw masks, and {0.estimator} does not",
            instead="give another `estimator`",
        ),
        Use(
            "scale_rate adapter_rank adapter_rate weight_rate",
            when=lambda config: config.estimator != "policy_gradient",
            what="takes a gradient through the model, and policy_gradient has none",
            instead="give another `estimator`",
        ),
        Use(
            "adapter_rate",
            when=lambda config: config.adapter_rank,
            what="is of adapters, and none are learned",
            instead="let `adapter_rank` be above 0",
        ),
    )

    steps: Steps = 150
    """Optimiser steps."""
    minutes: Minutes = 0.0
    """Time of the whole command in place of --steps. The first steps' pace fixes how many there
    are."""
    start: Literal["scores", "random"] = "scores"
    """Where the logits begin: at the Fisher scores, or at what the parametrisation draws."""
    parametrisation: Parametrisation = "logits"
    """What is trained: the logits, or the paper's hypernetwork, which adds to them."""
    estimator: Estimator = "projected"
    """How logits become masks with a gradient."""
    shift: Shift = 0.0
    """The constant c that is added to the logits (the paper: 3)."""
    temperature: Temperature = 0.5
    """The temperature τ of the estimator's sigmoid."""
    penalty: Factor = 0.0
    """The weight λ of |log(T(s)/(keep·T))|; 0 where the projection holds the budget."""
    scale_rate: AnyRate = 0.01
    """Step size of the scale that every kept entry learns; 0 = none. Export folds it into the
    weights."""
    adapter_rank: AnyRank = 16
    """Rank of the adapters (LoRA) that learn beside the masks; 0 = none. Export adds them to the
    weights."""
    adapter_rate: Rate = 0.002
    """Step size of these adapters, relative to the size of the weights."""
    weight_rate: AnyRate = 0.0
    """Step size of all linear layers of the blocks, relative to the size of the weights; 0 =
    frozen. One set of weights for every size, 24 bytes of memory a weight, a quarter more time."""

    @property
    def learns_adapters(self) -> bool:
        """Whether adapters are learned, which takes a gradient through the model."""
        return self.adapter_rank > 0 and self.estimator != "policy_gradient"

    @property
    def learns_weights(self) -> bool:
        """Whether the weights themselves are learned, which takes a gradient through the model."""
        return self.weight_rate > 0 and self.estimator != "policy_gradient"

    @property
    def adds_to_weights(self) -> bool:
        """Whether something is learned that is added to weights."""
        return self.learns_adapters or self.learns_weights

    @property
    def learns_scales(self) -> bool:
        """Whether scales are learned, which takes a gradient through the model."""
        return self.scale_rate > 0 and self.estimator != "policy_gradient"
