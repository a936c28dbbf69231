"""Mask learning: a model, text and a start -> the importance of every entry, its scale, and what
is added to every linear layer.

Every step draws its windows, its noise and, for several sizes, its keep from named random streams,
as the loop wants it.

N entries of all sites, B windows of a batch.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from disp_llm.data.randomness import random_stream, shared_stream
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import project
from disp_llm.masks.masking import Masking, masked
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.training.adapters import Adapters, Adapting, adapted
from disp_llm.training.blocks import compiles, training_blocks
from disp_llm.training.estimators import ESTIMATORS, Draw
from disp_llm.training.hypernetwork import build
from disp_llm.training.loop import Schedule, differentiate, optimizers_of, train
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.problem import PruningProblem

WEIGHTS_GROW = 0.1
"""Share of the steps in which the step size of weights grows to its peak: AdamW's first steps move
every weight alike, whatever its gradient, and masks have not settled by then."""

BASELINE_DECAY = 0.9
"""Decay of the moving average that the policy gradient compares a loss with."""


class LearningState(nn.Module):
    """Everything that a step of mask learning changes, and a checkpoint holds."""

    def __init__(self, logits: nn.Module, scales: nn.Parameter | None, adapters: Adapters | None):
        super().__init__()
        self.logits = logits
        self.register_parameter("scales", scales)
        self.adapters = adapters
        self.register_buffer("baseline", torch.tensor(math.nan))
        """Moving average of the loss, for the policy gradient; NaN before the first step."""


def learn(problem: PruningProblem, start: Float[Tensor, " N"], steps: int) -> Selection:
    """Trains logits from `start`, a scale for every entry from 1, and adapters from nothing.

    It goes on from a checkpoint of the problem's run.
    """
    config, device = problem.training, start.device
    problem.corpus.require_length(config.length, "length")
    state = _initial_state(problem, start)
    compiled = compiles(config, steps, problem.dense)
    with contextlib.ExitStack() as stack:
        masking = stack.enter_context(masked(problem.dense))
        adapting = None
        if state.adapters is not None:
            adapting = stack.enter_context(adapted(problem.dense, state.adapters))
        stack.enter_context(training_blocks(problem.dense, config, compiled))

        @contextlib.contextmanager
        def as_it_was() -> Iterator[None]:
            """While the context lasts, the model is the original."""
            with adapting.lifted() if adapting else contextlib.nullcontext(), masking.lifted():
                yield

        teacher = Teacher(problem.dense, config.distill, as_it_was) if config.distill else None

        def losses_of(windows: Windows) -> Tensor:
            return mean_losses(problem.dense, windows.to(device), teacher, compiled)

        learner = MaskLearner(problem, state, masking, adapting, losses_of)
        schedule = Schedule(config, steps, "learning masks")
        train(state, _optimizers(problem, state), learner.backward, schedule, problem.job)
    with torch.no_grad():
        never_pruned = problem.budget.never_pruned.to(device)
        scales = None if state.scales is None else state.scales.masked_fill(never_pruned, 1.0)
        adapters = () if state.adapters is None else state.adapters.learned()
        return Selection(state.logits().clone(), Compensation(scales, adapters=adapters))


def _initial_state(problem: PruningProblem, start: Float[Tensor, " N"]) -> LearningState:
    learn, device = problem.learn, start.device
    noise, layout = random_stream("start", problem.seed), problem.budget.layout
    logits = build(learn.parametrisation, start.float(), layout, noise)
    scales = None
    if learn.learns_scales:
        scales = nn.Parameter(torch.ones_like(start, dtype=torch.float32))
    adapters = None
    if learn.adds_to_weights:
        noise, rank = random_stream("adapters", problem.seed), learn.adapter_rank
        adapters = Adapters.begun(problem.dense, rank, noise, learn.learns_weights)
    return LearningState(logits, scales, adapters).to(device)


def _optimizers(problem: PruningProblem, state: LearningState) -> list[Optimizer]:
    """Of logits and, where they are learned, scales, adapters and weights."""
    learn, exact = problem.learn, {"weight_decay": 0.0}
    groups: list[dict[str, Any]] = [{"params": list(state.logits.parameters())}]
    weights: list[nn.Parameter] = []
    if state.scales is not None:
        groups.append(exact | {"params": [state.scales], "lr": learn.scale_rate})
    if state.adapters is not None:
        low = [*state.adapters.down, *state.adapters.up]
        groups.append(exact | {"params": low, "lr": learn.adapter_rate})
        weights = list(state.adapters.delta)
    whole = exact | {"params": weights, "lr": learn.weight_rate, "growing": WEIGHTS_GROW}
    return optimizers_of(problem.training, groups, whole, foreach=True)


@dataclass(frozen=True)
class MaskLearner:
    """Takes the gradient of a step: cross-entropy + λ·|log(T(s)/(keep·T))|."""

    problem: PruningProblem
    state: LearningState
    masking: Masking
    adapting: Adapting | None
    losses_of: Callable[[Windows], Float[Tensor, " B"]]
    """Mean loss of every window under the masks that are set."""

    def backward(self, step: int) -> dict[str, Any]:
        """Accumulates the gradient, and returns the figures of the step."""
        problem = self.problem
        keep = problem.keep_at(random_stream("sizes", problem.seed, step))
        noise = shared_stream("steps", problem.seed, step)
        figures = differentiate(*self._batch_loss(keep, noise))
        return figures | {"keep_asked": keep}

    def _batch_loss(self, keep: float, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        problem, learn, state = self.problem, self.problem.learn, self.state
        budget, config = problem.budget, problem.training
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
        windows = problem.corpus.draw_own(config.batch, config.length, noise, problem.job.process)
        with torch.set_grad_enabled(sample.log_probability is None):
            losses = self.losses_of(windows)  # (B)
        loss = losses.mean()
        share = budget.share(budget.layout.counts(sample.counted))
        total = loss
        if learn.penalty:
            total = total + learn.penalty * (share / keep).log().abs()
        if sample.log_probability is not None:
            total = self._against_baseline(total) * sample.log_probability
        return total, {"loss": loss, "keep": share}

    def _against_baseline(self, reward: Tensor) -> Tensor:
        """The reward less its moving average, over all processes, of the steps before; the average
        is updated. No gradient."""
        reward, baseline = reward.detach(), self.state.baseline
        mean = self.problem.job.process.mean(reward.clone())
        before = baseline.nan_to_num(float(mean))
        baseline.copy_(BASELINE_DECAY * before + (1 - BASELINE_DECAY) * mean)
        return reward - before
