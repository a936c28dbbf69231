"""FLAP (arXiv 2312.11983): scores structures by how much their outputs fluctuate.

A column of the layer that writes to the residual stream scores `Var(X_j)·‖W_j‖²` (section 3.2); a
KV head scores the mean of its columns, each squared as in the authors' experiments. Scores are
standardised within each layer, so that one threshold divides the budget between blocks (3.3). The
mean that a pruned column would have added becomes a bias of the layer (3.4):
`b = Σ_pruned mean(X_j)·W_j`.

K inputs of a layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.activations import Moments, input_moments
from disp_lab.parts.coupled import by_head, flat_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.names import COUPLED
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.methods import Method
from disp_llm.models.architectures import Branch
from disp_llm.training.problem import PruningProblem


def flap(problem: PruningProblem) -> Selection:
    """Returns standardised fluctuations of KV heads and intermediate channels, and the mean inputs
    from which biases are made."""
    layout, dense = problem.budget.layout, problem.dense
    moments = input_moments(problem)
    channels, heads = [], []
    for block, shape, inputs in zip(dense.blocks, layout.blocks, moments, strict=True):
        of_attention, of_mlp = map(_fluctuation, (block, block), dense.branches_of(block), inputs)
        columns = _standardised(of_attention.square())
        heads.append(by_head(columns, shape.heads) * shape.heads / shape.q)
        channels.append(_standardised(of_mlp))
    means = torch.cat([inputs.mean for pair in moments for inputs in pair])
    return Selection(flat_of(layout, channels, heads), Compensation(mean_inputs=means.float()))


def _fluctuation(block: nn.Module, branch: Branch, inputs: Moments) -> Float[Tensor, " K"]:
    weight = matrix_of(linear_at(block, branch.writes)).double()
    return inputs.variance * weight.square().sum(0)


def _standardised(scores: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)


METHOD = Method(
    name="flap",
    title="FLAP",
    reference="An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models "
    "(arXiv 2312.11983)",
    choose=flap,
    sites=COUPLED,
)
