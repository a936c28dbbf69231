"""FLAP: An et al., Fluctuation-based Adaptive Structured Pruning for LLMs (arXiv 2312.11983).

A column of the layer that writes to the residual stream counts `Var(X_j)·‖W_j‖²` (section 3.2); a
KV head counts the mean of its columns. Scores are standardised within each layer, so that one
threshold shares the budget out between blocks (3.3), and the mean of what a dropped column would
have added becomes a bias of the layer (3.4): `b = Σ_dropped mean(X_j)·W_j`.
"""

import torch
from torch import Tensor

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.learn import Task
from disp_llm.masks import Choice, blocks_of
from disp_llm.methods.activations import at_heads_and_middles, columns, input_moments
from disp_llm.methods.context import Context


def flap(task: Task, context: Context) -> Choice:
    """Standardised fluctuations of KV heads and intermediate channels, and the means for biases."""
    of_heads: list[Tensor] = []
    of_middles: list[Tensor] = []
    blocks = blocks_of(task.model, task.family)
    moments = input_moments(task, context)
    for block, shape, (o, down) in zip(blocks, task.budget.layout.blocks, moments, strict=True):
        attention, mlp = (
            found.variance * columns(linear_at(block, branch.writes)).square().sum(0)
            for found, branch in ((o, task.family.attention), (down, task.family.mlp))
        )
        of_heads.append(_standardised(attention.view(shape.heads, -1).mean(1)))
        of_middles.append(_standardised(mlp))
    means = torch.cat([found.mean for pair in moments for found in pair])
    return Choice(at_heads_and_middles(task, of_heads, of_middles), means=means.float())


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)
