"""Mask learning: a model, text and a start -> the importance and scale of every entry, and what is
added to every linear layer.

Every step draws its windows, its noise and, for several sizes, its keep from named random streams,
as the loop requires for resuming.

N entries of all sites, B windows of a batch.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from disp_llm.config.errors import InputError
from disp_llm.data.randomness import random_stream, shared_stream
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import project
from disp_llm.masks.masking import Masking, masked
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.training.adapters import Adapters, Adapting, adapted
from disp_llm.training.blocks import compiles, training_blocks
from disp_llm.training.estimators import ESTIMATORS, Draw
from disp_llm.training.loop import RARER, Loss, Schedule, optimizers_of, train
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.problem import PruningProblem

WEIGHTS_GROW = 0.1
"""Share of the steps over which the weights' learning rate grows to its peak: AdamW's first steps
move every weight equally, whatever its gradient, while masks have not settled yet."""

BASELINE_DECAY = 0.9
"""Decay of the moving average of losses, the policy gradient's baseline."""


class FreeLogits(nn.Module):
    """x = Θ; Θ is initialised with the start vector."""

    def __init__(self, start: Float[Tensor, " N"]):
        super().__init__()
        self.logits = nn.Parameter(start.clone())

    def forward(self) -> Float[Tensor, " N"]:
        return self.logits


class LearningState(nn.Module):
    """All state that a step of mask learning changes and a checkpoint holds."""

    def __init__(self, logits: nn.Module, scales: nn.Parameter | None, adapters: Adapters | None):
        super().__init__()
        self.logits = logits
        self.register_parameter("scales", scales)
        self.adapters = adapters
        self.register_buffer("baseline", torch.tensor(math.nan))
        """Moving average of the loss for the policy gradient; NaN before the first step."""


def learn(problem: PruningProblem, start: Float[Tensor, " N"], steps: int) -> Selection:
    """Trains logits from `start` and, as the settings say, scales from 1, adapters and weights.

    Resumes from a checkpoint of the problem's run, if there is one.
    """
    config, dense = problem.training, problem.dense
    problem.corpus.require_length(config.length, "length")
    state, adapting = _initial_state(problem, start), None
    compiled = compiles(config, steps, dense)
    with contextlib.ExitStack() as stack:
        masking = stack.enter_context(masked(dense, problem.budget.sites))
        if state.adapters is not None:
            adapting = stack.enter_context(adapted(dense, state.adapters))
        stack.enter_context(training_blocks(dense, config, compiled))
        learner = MaskLearner(problem, state, masking, adapting, compiled)
        rarer = RARER if problem.learn.learns_weights else 1
        schedule = Schedule(config, steps, "learning masks", rarer)
        train(state, _optimizers(problem, state), learner.loss, schedule, problem.job)
    with torch.no_grad():
        never_pruned = problem.budget.never_pruned.to(start.device)
        scales = None if state.scales is None else state.scales.masked_fill(never_pruned, 1.0)
        adapters = () if state.adapters is None else state.adapters.learned()
        return Selection(state.logits().clone(), Compensation(scales, adapters=adapters))


def _initial_state(problem: PruningProblem, start: Float[Tensor, " N"]) -> LearningState:
    learn, device = problem.learn, start.device
    logits: nn.Module = FreeLogits(start.float())
    if learn.parametrisation == "hypernetwork":
        from disp_llm.training.hypernetwork import Hypernetwork

        lengths, noise = problem.budget.layout.lengths, random_stream("start", problem.seed)
        logits = Hypernetwork(start.float(), lengths, noise)
    scales = None
    if learn.learns_scales:
        scales = nn.Parameter(torch.ones_like(start, dtype=torch.float32))
    adapters = None
    if learn.adds_to_weights:
        noise, rank = random_stream("adapters", problem.seed), learn.adapter_rank
        adapters = Adapters.begun(problem.dense, rank, noise, learn.learns_weights)
    return LearningState(logits, scales, adapters).to(device)


def _optimizers(problem: PruningProblem, state: LearningState) -> list[Optimizer]:
    """Builds the optimisers of the logits and, where learned, of scales, adapters and weights."""
    learn, exact = problem.learn, {"weight_decay": 0.0}
    groups: list[dict[str, Any]] = [{"params": list(state.logits.parameters())}]
    whole: dict[str, Any] = exact | {"params": []}
    if state.scales is not None:
        groups.append(exact | {"params": [state.scales], "lr": learn.scale_rate})
    if state.adapters is not None:
        low = [*state.adapters.down, *state.adapters.up]
        groups.append(exact | {"params": low, "lr": learn.adapter_rate})
        rate = learn.weight_rate * state.adapters.scale
        whole |= {"params": list(state.adapters.delta), "lr": rate, "growing": WEIGHTS_GROW}
    return optimizers_of(problem.training, groups, whole, foreach=True)


@dataclass(frozen=True)
class MaskLearner:
    """Loss of a step: (1 − distill)·cross-entropy + distill·KL(original ‖ masked) +
    λ·|log(share/keep)|. Shares are of the cost that the budget limits."""

    problem: PruningProblem
    state: LearningState
    masking: Masking
    adapting: Adapting | None
    compiled: bool

    def loss(self, step: int) -> Loss:
        """Draws masks and windows; returns the loss to differentiate and the step's figures.

        Raises:
            InputError: the masks keep nothing.
        """
        problem, learn, state = self.problem, self.problem.learn, self.state
        budget, config = problem.budget, problem.training
        keep = problem.keep_at(random_stream("sizes", problem.seed, step))
        noise = shared_stream("steps", problem.seed, step)
        windows = problem.corpus.draw_own(config.batch, config.length, noise, problem.job.process)
        never_pruned = budget.never_pruned.to(problem.dense.device)
        logits = budget.layout.by_chunks(state.logits(), budget.chunk)
        at_keep = functools.partial(project, budget=budget, share=keep, align=problem.align)
        draw = Draw(logits, at_keep, noise, learn.shift, learn.temperature)
        sample = ESTIMATORS[learn.estimator](draw).with_ones(never_pruned)
        mask = sample.mask
        if state.scales is not None:
            mask = mask * state.scales.masked_fill(never_pruned, 1.0)
        self.masking.set(mask)
        if self.adapting is not None:
            self.adapting.set()
        with torch.set_grad_enabled(sample.log_probability is None):
            loss = self._losses(windows).mean()
        share = budget.share(budget.layout.counts(sample.counted))
        draws = learn.estimator != "projected"  # projected masks meet the budget
        if draws and share <= 0:  # the penalty would be infinite
            raise InputError(
                f"step {step + 1} draws masks that keep nothing",
                field="shift",
                hint="raise it, or lower `learning_rate`",
            )
        total = loss
        if draws and learn.penalty:
            total = total + learn.penalty * (share / keep).log().abs()
        if sample.log_probability is not None:
            total = self._against_baseline(total) * sample.log_probability
        asked = torch.tensor(keep, dtype=torch.float64)
        return total, {"loss": loss, "keep": share, "keep_asked": asked}

    def _losses(self, windows: Windows) -> Float[Tensor, " B"]:
        """Returns the loss of every window, under the current masks and adapters."""
        dense, share = self.problem.dense, self.problem.training.distill
        head = self.problem.teaching
        teacher = Teacher(dense, share, self._unpruned, head=head) if share else None
        return mean_losses(dense, windows.to(dense.device), teacher, self.compiled)

    @contextlib.contextmanager
    def _unpruned(self) -> Iterator[None]:
        """Makes the model the original within the context."""
        lifted = self.adapting.lifted() if self.adapting else contextlib.nullcontext()
        with lifted, self.masking.lifted():
            yield

    def _against_baseline(self, reward: Tensor) -> Tensor:
        """Returns the mean reward of all processes, which share the masks, minus its moving average
        over earlier steps, without gradient; updates the average. The first is exactly 0: AdamW
        would make a whole step of what rounding leaves."""
        baseline = self.state.baseline
        mean = self.problem.job.process.mean(reward.detach().clone())
        before = mean.where(baseline.isnan(), baseline)
        baseline.copy_(BASELINE_DECAY * before + (1 - BASELINE_DECAY) * mean)
        return mean - before
