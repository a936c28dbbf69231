"""Magnitude: squared weights that an entry's removal deletes, per block parameter (no text needed).

Han et al., Learning both Weights and Connections for Efficient Neural Networks (arXiv 1506.02626),
with the group of weights of an entry in place of one weight.
"""

from typing import Any

import torch
from torch import Tensor

from disp_llm.compact.modeling_disp_llm import matrix_of
from disp_llm.learn import Task
from disp_llm.masks import Choice, blocks_of
from disp_llm.methods.context import Context


def magnitude(task: Task, context: Context) -> Choice:
    """Mean squared weight of each entry (N)."""
    parts = []
    for block in blocks_of(task.model, task.family):
        attention, mlp = task.family.attention, task.family.mlp
        q_k_v = [_squares(block.get_submodule(path)) for path in attention.reads]
        gate_up = [_squares(block.get_submodule(path)) for path in mlp.reads]
        o, down = (_squares(block.get_submodule(path)) for path in (attention.writes, mlp.writes))
        rows = sum(
            piece.sum(1) for linear in gate_up for piece in linear.chunk(mlp.fused)
        )  # one number an intermediate channel
        parts += [
            sum(linear.sum(0) for linear in q_k_v),
            o.sum(1),
            sum(linear.sum(0) for linear in gate_up),
            rows + down.sum(0),
            down.sum(1),
        ]
        heads = task.budget.layout.blocks[0].heads
        if heads:
            rows = sum(linear.sum(1).view(heads, -1).sum(1) for linear in q_k_v)
            parts.append(rows + o.sum(0).view(heads, -1).sum(1))
    return Choice(torch.cat(parts).log() - task.budget.entry_costs.to(parts[0].device).log())


def _squares(linear: Any) -> Tensor:
    """Squared weights in float32, (outputs, inputs)."""
    return matrix_of(linear).float().square()
