"""Wanda (arXiv 2306.11695) with whole columns in place of single weights, as FLAP adapts it (arXiv
2312.11983, section 4).

A column of the layer that writes to the residual stream scores `‖X_j‖₂·Σ_i |W_ij|`, a KV head the
sum over its columns. Blocks are pruned from first to last by the same share; X is the layer's input
behind the pruned blocks.

K inputs of a layer.
"""

import torch
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.coupled import by_head, flat_of, sizes_of, top_k
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.names import COUPLED
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.models.architectures import Branch
from disp_llm.training.problem import PruningProblem


def wanda(problem: PruningProblem) -> Selection:
    """Returns ranks of KV heads and intermediate channels within their block, for one size."""
    layout, dense = problem.budget.layout, problem.dense
    channels = [torch.ones(shape.intermediate, device=dense.device) for shape in layout.blocks]
    heads = [torch.ones(shape.heads, device=dense.device) for shape in layout.blocks]
    sizes = [sizes_of(shape, min(problem.keeps)) for shape in layout.blocks]

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        attention, mlp = dense.branches_of(block)
        of_heads = by_head(_columns(block, attention, moments), len(heads[index]))
        heads[index] = top_k(of_heads, sizes[index].heads)
        of_channels = _columns(block, mlp, moments)
        channels[index] = top_k(of_channels, sizes[index].channels)
        masking.set((flat_of(layout, channels, heads) >= 1).float())

    with masked(dense) as masking:
        masking.set(torch.ones(layout.entries, device=dense.device))
        visit_blocks(problem, dense, visit)
    return Selection(flat_of(layout, channels, heads))


def _columns(block: nn.Module, branch: Branch, moments: SecondMoments) -> Tensor:
    """Returns the score of every column, (K)."""
    weight = matrix_of(linear_at(block, branch.writes)).double()
    return moments[branch.writes].diagonal().double().sqrt() * weight.abs().sum(0)


METHOD = Method(
    name="wanda",
    title="Wanda",
    reference="Sun et al., A Simple and Effective Pruning Approach for Large Language Models "
    "(arXiv 2306.11695)",
    choose=wanda,
    sites=COUPLED,
    one_size=True,
)
