"""Wanda: Sun et al., A Simple and Effective Pruning Approach for LLMs (arXiv 2306.11695).

Whole columns in place of single weights, as FLAP adapts it (arXiv 2312.11983, section 4).

A column of the layer that writes to the residual stream counts `‖X_j‖₂·Σ_i |W_ij|`; a KV head
counts the mean of its columns. Every block loses the same share.
"""

from torch import Tensor

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.learn import Task
from disp_llm.masks import Choice, blocks_of
from disp_llm.methods.activations import at_heads_and_middles, columns, input_moments, uniform
from disp_llm.methods.context import Context


def wanda(task: Task, context: Context) -> Choice:
    """Scores of KV heads and intermediate channels, as ranks within their block."""
    of_heads: list[Tensor] = []
    of_middles: list[Tensor] = []
    blocks = blocks_of(task.model, task.family)
    moments = input_moments(task, context)
    for block, shape, (o, down) in zip(blocks, task.budget.layout.blocks, moments, strict=True):
        for found, branch, into in (
            (o, task.family.attention, of_heads),
            (down, task.family.mlp, of_middles),
        ):
            weight = columns(linear_at(block, branch.writes))
            into.append(found.square.sqrt() * weight.abs().sum(0))
        of_heads[-1] = of_heads[-1].view(shape.heads, -1).mean(1)
    return Choice(uniform(at_heads_and_middles(task, of_heads, of_middles), task))
