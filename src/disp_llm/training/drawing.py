"""The sources that steps of training draw from, with what they are held against."""

import torch

from disp_llm.data.mixture import Mixture
from disp_llm.data.randomness import random_stream
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.problem import PruningProblem


@torch.no_grad()
def mixture_of(problem: PruningProblem, length: int, distill: float) -> Mixture:
    """Where weights are to follow the loss, that of the model which has no masks is measured first:
    the loss that is learned from.

    Args:
        length: tokens of a window.
        distill: share of the loss that is the divergence from the dense model.
    """
    dense, mixture = problem.dense, Mixture(problem.corpus)
    teacher = Teacher(dense, distill) if distill else None
    mixture.measure_reference(
        lambda windows: mean_losses(dense, windows.to(dense.device), teacher),
        length,
        random_stream("reference", problem.seed),
    )
    return mixture
