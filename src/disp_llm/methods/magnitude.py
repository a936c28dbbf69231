"""Magnitude: squared weights that an entry's removal deletes, per block parameter; needs no text.

The criterion of arXiv 1506.02626, with the group of weights of an entry in place of one weight.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.compact.modeling_disp_llm import matrix_of
from disp_llm.masks.selection import Selection
from disp_llm.methods.parts.method import Method
from disp_llm.training.problem import PruningProblem


def magnitude(problem: PruningProblem) -> Selection:
    """Logarithm of the mean squared weight of each entry."""
    parts = []
    for block in problem.dense.blocks:
        attention, mlp = problem.dense.branches_of(block)
        q_k_v = [_squares(block.get_submodule(path)) for path in attention.reads]
        gate_up = [_squares(block.get_submodule(path)) for path in mlp.reads]
        o, down = (_squares(block.get_submodule(path)) for path in (attention.writes, mlp.writes))
        rows = sum(
            projection.sum(1) for linear in gate_up for projection in linear.chunk(mlp.fused)
        )  # one number an intermediate channel
        parts += [
            sum(linear.sum(0) for linear in q_k_v),
            o.sum(1),
            sum(linear.sum(0) for linear in gate_up),
            rows + down.sum(0),
            down.sum(1),
        ]
        heads = problem.budget.layout.blocks[0].heads
        if heads:
            rows = sum(linear.sum(1).view(heads, -1).sum(1) for linear in q_k_v)
            parts.append(rows + o.sum(0).view(heads, -1).sum(1))
        if problem.budget.layout.blocks[0].branches:
            parts += [_total(*q_k_v, o), _total(*gate_up, down)]
    return Selection(torch.cat(parts).log() - problem.budget.entry_costs.to(parts[0].device).log())


def _total(*squares: Tensor) -> Float[Tensor, "1"]:
    """The sum of all numbers of some tensors."""
    return torch.stack([part.sum() for part in squares]).sum(0, keepdim=True)


def _squares(linear: Any) -> Float[Tensor, "outputs inputs"]:
    """Squared weights in float32."""
    return matrix_of(linear).float().square()


METHOD = Method(
    name="magnitude",
    title="Magnitude",
    reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks "
    "(arXiv 1506.02626)",
    choose=magnitude,
    drops_branches=True,
    reads_text=False,
)
