"""FLAP: An et al., Fluctuation-based Adaptive Structured Pruning for LLMs (arXiv 2312.11983).

A column of the layer that writes to the residual stream counts `Var(X_j)·‖W_j‖²` (section 3.2); a
KV head counts the mean of its columns, each squared as in the authors' experiments. Scores are
standardised within each layer, so that one threshold shares the budget out between blocks (3.3),
and the mean of what a dropped column would have added becomes a bias of the layer (3.4):
`b = Σ_dropped mean(X_j)·W_j`.
"""

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.families import Branch
from disp_llm.learn import Task
from disp_llm.masks import Choice, blocks_of
from disp_llm.methods.activations import Moments, input_moments
from disp_llm.methods.context import Context
from disp_llm.methods.coupled import by_head, flat_of


def flap(task: Task, context: Context) -> Choice:
    """Standardised fluctuations of KV heads and intermediate channels, and the means for biases."""
    layout, family = task.budget.layout, task.family
    moments = input_moments(task, context)
    channels, heads = [], []
    for block, shape, (attention, mlp) in zip(
        blocks_of(task.model, family), layout.blocks, moments, strict=True
    ):
        columns = _standardised(_fluctuation(block, family.attention, attention).square())
        heads.append(by_head(columns, shape.heads) * shape.heads / shape.q)
        channels.append(_standardised(_fluctuation(block, family.mlp, mlp)))
    means = torch.cat([found.mean for pair in moments for found in pair])
    return Choice(flat_of(layout, channels, heads), means=means.float())


def _fluctuation(block: nn.Module, branch: Branch, found: Moments) -> Tensor:
    weight = matrix_of(linear_at(block, branch.writes)).double()
    return found.variance * weight.square().sum(0)


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)
