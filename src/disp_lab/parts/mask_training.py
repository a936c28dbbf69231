"""Training loop for methods that learn masks with their own loss, on random windows.

N entries of all sites.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.learning import TrainingConfig
from disp_llm.data.randomness import shared_stream
from disp_llm.masks.masking import masked
from disp_llm.training.blocks import compiles, training_blocks
from disp_llm.training.loop import Loss, Schedule, train
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.problem import PruningProblem

LossUnder = Callable[[Float[Tensor, " N"]], Float[Tensor, ""]]
"""Draws a batch of windows and returns the mean loss of their tokens under a mask."""

BatchLoss = Callable[[int, torch.Generator, LossUnder], Loss]
"""Step, noise and the loss under a mask -> the loss to differentiate, and the figures to report."""


def train_masks(
    problem: PruningProblem,
    config: TrainingConfig,
    steps: int,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_loss: BatchLoss,
    *,
    distill: float = 0.0,
    warmup: float = 0.0,
) -> None:
    """Trains for `steps` steps; resumes from a checkpoint of the problem's run.

    Args:
        config: the problem's settings, with the method's own values where it prescribes them.
        batch_loss: draws random numbers only from the step's noise.
        distill: share of the loss that is the divergence from the dense model.
        warmup: share of the steps over which the step size grows to its peak.
    """
    dense, process = problem.dense, problem.job.process
    schedule = Schedule(config, steps, "learning masks", warmup=warmup)
    compiled = compiles(config, steps, dense)

    def loss_of(step: int) -> Loss:
        noise = shared_stream("steps", problem.seed, step)

        def loss_under(mask: Tensor) -> Tensor:
            masking.set(mask)
            windows = problem.corpus.draw_own(config.batch, config.length, noise, process)
            losses = mean_losses(dense, windows.to(dense.device), teacher, compiled)
            return losses.mean()

        return batch_loss(step, noise, loss_under)

    with masked(dense) as masking, training_blocks(dense, config, compiled):
        teacher = Teacher(dense, distill, masking.lifted) if distill else None
        state = nn.ModuleDict({"of_method": trained})
        train(state, [optimizer], loss_of, schedule, problem.job)


def travelling(rate: float, published_steps: int, steps: int, most: float) -> float:
    """Returns the step size with which Adam moves a parameter as far in `steps` as in the paper's
    steps: the product of step size and steps stays the same.

    Args:
        rate: the paper's step size, for its `published_steps`.
        most: largest factor; in very few steps a parameter does not come as far.
    """
    return rate * min(published_steps / max(steps, 1), most)
