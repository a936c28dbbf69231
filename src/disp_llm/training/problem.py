"""The pruning problem that every method receives: the model, the text and the budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.parts import ScoreConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.randomness import random_stream
from disp_llm.data.windows import Corpus, Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.windows import require_positions
from disp_llm.runs.job import Job
from disp_llm.training.losses import Head

Result = TypeVar("Result")

SMALL_FIRST = 1.5
"""Exponent on the uniform number that draws a keep, so that small sizes, which are harder, come
more often."""


@dataclass(frozen=True)
class PruningProblem:
    """A dense model, learning text and a budget, with the job to solve it."""

    dense: PrunableModel
    corpus: Corpus
    """Learning tokens."""
    budget: Budget
    keeps: tuple[float, ...]
    """A single keep holds at every step; of several, every step draws one between the extremes."""
    align: int
    """Widths are multiples of this."""
    job: Job[PruneConfig]
    vocabulary: tuple[int, ...] = ()
    """The original's tokens that the model has; () = all."""
    teaching: Head | None = None
    """The original's head when it teaches such a model; None = the model's own head."""

    @property
    def scores(self) -> ScoreConfig:
        """Calibration settings."""
        return self.job.config.scores

    @property
    def learn(self) -> LearnConfig:
        """Settings of what is learned for and beside the masks."""
        return self.job.config.learn

    @property
    def training(self) -> TrainingConfig:
        """Settings of the training loop."""
        return self.job.config.training

    @property
    def seed(self) -> int:
        """Seed of every random draw."""
        return self.job.config.machine.seed

    def masks(self, selection: Selection, share: float) -> Masks:
        """Returns the masks of a size: the importance projected onto its budget, with nothing kept
        inside a branch that is pruned as a whole."""
        kept = project(selection.importance, self.budget, share, self.align).kept
        layout = self.budget.layout
        return Masks(layout, layout.without_dropped(kept), selection)

    def keep_at(self, noise: torch.Generator) -> float:
        """Draws the keep of a step."""
        low, high = min(self.keeps), max(self.keeps)
        return low + (high - low) * float(torch.rand((), generator=noise)) ** SMALL_FIRST


def take_steps(problem: PruningProblem, take: Callable[[PruningProblem, int], Result]) -> Result:
    """Calls `take` with the number of steps that was asked for, or that the time allows."""
    steps = problem.learn.steps
    if problem.learn.minutes:
        from disp_llm.training.pace import planned_steps

        steps = planned_steps(problem, take)
    return take(problem, steps)


def calibration_windows(problem: PruningProblem) -> Windows:
    """Draws windows that depend on the seed only, so all methods see the same. Raises InputError if
    a window is longer than the text or than the model can read."""
    count, length = problem.scores.calibration_sequences, problem.scores.calibration_length
    require_positions(problem.dense.model, length, "calibration_length")
    problem.corpus.require_length(length, "calibration_length")
    return problem.corpus.draw(count, length, random_stream("calibration", problem.seed))
