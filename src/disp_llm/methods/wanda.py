"""Wanda: Sun et al., A Simple and Effective Pruning Approach for LLMs (arXiv 2306.11695).

Whole columns in place of single weights, as FLAP adapts it (arXiv 2312.11983, section 4).

A column of the layer that writes to the residual stream counts `‖X_j‖₂·Σ_i |W_ij|`, a KV head the
sum of its columns. Every block loses the same share, first to last, and what X is for a block is
what the blocks before it give after they have lost theirs.
"""

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.families import Branch
from disp_llm.learn import Task
from disp_llm.masks import Choice, masked
from disp_llm.methods.context import Context
from disp_llm.methods.coupled import by_head, flat_of, preferred, sizes_of
from disp_llm.methods.walk import walk


def wanda(task: Task, context: Context) -> Choice:
    """Ranks of KV heads and intermediate channels within their block, for one size.

    Raises:
        InputError: no channel would be left.
    """
    layout, family = task.budget.layout, task.family
    device = next(task.model.parameters()).device
    channels = [torch.ones(shape.intermediate, device=device) for shape in layout.blocks]
    heads = [torch.ones(shape.heads, device=device) for shape in layout.blocks]
    sizes = [sizes_of(shape, min(task.keeps)) for shape in layout.blocks]

    def visit(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
        of_heads = by_head(_columns(block, family.attention, moments), len(heads[index]))
        heads[index] = preferred(of_heads, sizes[index].heads)
        of_channels = _columns(block, family.mlp, moments)
        channels[index] = preferred(of_channels, sizes[index].channels)
        masking.set((flat_of(layout, channels, heads) >= 1).float())

    with masked(task.model, family, layout) as masking:
        masking.set(torch.ones(layout.entries, device=device))
        walk(task.model, task, context, visit)
    return Choice(flat_of(layout, channels, heads))


def _columns(block: nn.Module, branch: Branch, moments: dict[str, Tensor]) -> Tensor:
    weight = matrix_of(linear_at(block, branch.writes)).double()
    return moments[branch.writes].diagonal().double().sqrt() * weight.abs().sum(0)
