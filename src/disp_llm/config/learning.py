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
from disp_llm.config.effect import Use
from disp_llm.config.names import Estimator, LearningRateSchedule, Parametrisation

Shard = Literal["auto", "no", "full"]


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop, whatever it trains."""

    length: Window = 512
    """Tokens of a training window. Short windows adapt the model to the vocabulary of the learning
    text, or to having little context, at the cost of all other text (docs/experiment-log.md)."""
    batch: Batch = 2
    """Windows of one batch, in each process. Of several texts, a batch holds windows of as many as
    it can: the gradient of a step is then not that of one kind of text."""
    accumulate: Batch = 1
    """Batches whose gradients are averaged in one step."""
    learning_rate: Rate = 0.05
    """Peak of AdamW's step size."""
    betas: TwoShares = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    weight_optimizer: Literal["adamw", "muon"] = "adamw"
    """What steps the weights of the blocks' linear layers, packed experts apart, where they learn:
    AdamW, or Muon, whose steps move every direction of a matrix alike and are as long as AdamW's
    (torch.optim.Muon; arXiv 2502.16982). It takes a third more time on a CPU."""
    weight_decay: AnyRate = 0.0
    """AdamW's decoupled weight decay (the paper: 0.05)."""
    schedule: LearningRateSchedule = "cosine"
    """How the step size goes on from its peak: cosine falls to a tenth at the last step, linear
    evenly to nothing after it (arXiv 2502.15938)."""
    warmup: Share = 0.0
    """Share of the steps in which the step size grows to its peak."""
    distill: Share = 0.5
    """Share of the loss that is the divergence from the original model instead of cross-entropy. It
    takes a third more time. Of one kind of text 0 learns its vocabulary, at the cost of all other
    text; of a mix half of each was best (docs/experiment-log.md)."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Run the blocks (in `recover` what follows them) through torch.compile; auto does where there
    is a C++ compiler and enough steps to win its time back."""
    shard: Shard = "auto"
    """How several processes hold the weights: each all of them (no), or each a part (full); auto
    divides them where they would not fit."""
    gradient_checkpointing: Literal["auto", "yes", "no"] = "auto"
    """Run each block again in the backward pass: less memory, a third more time; auto does where
    `prune` would not fit otherwise, by what `disp-llm doctor` counts."""

    @property
    def recomputes(self) -> bool:
        """Whether blocks run again in the backward pass; not where nothing has settled it."""
        return self.gradient_checkpointing == "yes"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step in each process."""
        return self.length * self.batch * self.accumulate


@dataclass(frozen=True)
class LearnConfig:
    """What is learned about the masks, and beside them."""

    USES: ClassVar = (
        Use(
            "shift",
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
    """Time for the whole command, in place of --steps: learning takes as many steps as scoring and
    measuring leave time for. The pace of the first steps fixes their number, which then belongs to
    the run."""
    start: Literal["scores", "random"] = "scores"
    """Where the logits begin: at the Fisher scores, or at what the parametrisation draws."""
    parametrisation: Parametrisation = "logits"
    """What is trained: the logits themselves, or the paper's hypernetwork, which adds to them."""
    estimator: Estimator = "projected"
    """How logits become masks with a gradient."""
    shift: Shift = 0.0
    """The constant c that is added to the logits (the paper: 3)."""
    temperature: Temperature = 0.5
    """The temperature τ of the estimator's sigmoid."""
    penalty: Factor = 0.0
    """The weight λ of |log(T(s)/(keep·T))|; 0 where the projection holds the budget."""
    scale_rate: AnyRate = 0.01
    """Step size of the scale that every kept entry learns beside its mask, which is folded into the
    weights at export and compensates for what was pruned. 0 = none: the kept weights remain the
    original's. Not used by policy_gradient."""
    adapter_rank: AnyRank = 16
    """Rank of the low-rank adapters (LoRA) that every linear layer of the blocks learns beside the
    masks, which are added to its weight at export. 0 = none. Not used by policy_gradient."""
    adapter_rate: Rate = 0.002
    """Step size of these adapters."""
    weight_rate: AnyRate = 0.0
    """Step size of all weights of the blocks' linear layers, which then learn beside the masks, one
    set of them for every size: pruning and recovery in one run. 24 bytes of memory a weight, a
    quarter more time; 0 = the weights stay frozen. Not used by policy_gradient."""

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
