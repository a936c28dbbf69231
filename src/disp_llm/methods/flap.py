"""FLAP: An et al., Fluctuation-based Adaptive Structured Pruning for LLMs (arXiv 2312.11983).

A column of the layer that writes to the residual stream counts `Var(X_j)·‖W_j‖²` (section 3.2); a
KV head counts the mean of its columns, each squared as in the authors' experiments. Scores are
standardised within each layer, so that one threshold shares the budget out between blocks (3.3),
and the mean of what a dropped column would have added becomes a bias of the layer (3.4):
`b = Σ_dropped mean(X_j)·W_j`.
"""

import torch
from torch import Tensor

from disp_llm.learn import Task
from disp_llm.masks import Choice
from disp_llm.methods.activations import Moments, input_moments, score_columns
from disp_llm.methods.context import Context


def flap(task: Task, context: Context) -> Choice:
    """Standardised fluctuations of KV heads and intermediate channels, and the means for biases."""
    moments = input_moments(task, context)
    scores = score_columns(
        task,
        moments,
        _fluctuation,
        _standardised,
        of_heads=lambda found, weight: _fluctuation(found, weight).square(),
    )
    means = torch.cat([found.mean for pair in moments for found in pair])
    return Choice(scores, means=means.float())


def _fluctuation(found: Moments, weight: Tensor) -> Tensor:
    return found.variance * weight.square().sum(0)


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)
