"""Magnitude: squared weights that an entry's removal deletes, per block parameter; needs no text.

The criterion of arXiv 1506.02626, for an entry's group of weights in place of one weight.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.coupled import by_head, row_ranges
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.masks.selection import Selection
from disp_llm.masks.shapes import expert_weights
from disp_llm.methods import Method, Reads
from disp_llm.models.family import Branch
from disp_llm.training.problem import PruningProblem


def magnitude(problem: PruningProblem) -> Selection:
    """Returns the logarithm of the mean squared weight of each entry."""
    parts = []
    for block, shape in zip(problem.dense.blocks, problem.budget.layout.blocks, strict=True):
        attention, mlp = problem.dense.branches_of(block)
        q_k_v = [_squares(block.get_submodule(path)) for path in attention.reads]
        o = _squares(block.get_submodule(attention.writes))
        of_mlp = _dense(block, mlp) if mlp.experts is None else _mixture(block, mlp)
        parts += [
            sum(linear.sum(0) for linear in q_k_v),
            o.sum(1),
            of_mlp.incoming,
            of_mlp.middle,
            of_mlp.outgoing,
        ]
        if shape.heads:
            each = zip(attention.reads, q_k_v, strict=True)
            rows = [
                by_head(part, shape.heads)
                for path, linear in each
                for part in row_ranges(block, attention, path, linear.sum(1))
            ]
            parts.append(torch.stack([*rows, by_head(o.sum(0), shape.heads)]).sum(0))
        if shape.prunes_experts:
            parts.append(of_mlp.experts)
        if shape.branches:
            parts += [_total(*q_k_v, o), of_mlp.whole]
    return Selection(torch.cat(parts).log() - problem.budget.entry_costs.to(parts[0].device).log())


@dataclass(frozen=True)
class Squares:
    """Sums of squared weights of an MLP."""

    incoming: Float[Tensor, " D"]
    """Of the weights that read each dimension of the stream."""
    middle: Float[Tensor, " F"]
    """Of each intermediate dimension; in a mixture expert by expert."""
    outgoing: Float[Tensor, " D"]
    """Of the weights that write each dimension of the stream."""
    experts: Float[Tensor, " E"]
    """Of each expert, with its row of the router."""
    whole: Float[Tensor, "1"]


def _dense(block: nn.Module, mlp: Branch) -> Squares:
    gate_up = [_squares(linear_at(block, path)) for path in mlp.reads]
    down = _squares(linear_at(block, mlp.writes))
    rows = sum(projection.sum(1) for linear in gate_up for projection in linear.chunk(mlp.fused))
    whole = _total(*gate_up, down)
    incoming = torch.stack([linear.sum(0) for linear in gate_up]).sum(0)
    return Squares(incoming, rows + down.sum(0), down.sum(1), whole, whole)


def _mixture(block: nn.Module, mlp: Branch) -> Squares:
    """Sums over the experts, the router, and the shared expert if there is one."""
    router, gate_up, down = (weight.float().square() for weight in expert_weights(block, mlp))
    shared = [_squares(linear_at(block, path)) for path in mlp.reads]
    shared_down = [_squares(linear_at(block, mlp.writes))] if mlp.writes else []
    assert mlp.experts is not None
    rows = gate_up.sum(2).unflatten(1, (-1, 2) if "interleaved" in mlp.experts.quirks else (2, -1))
    rows = rows.sum(2 if "interleaved" in mlp.experts.quirks else 1)
    middle = rows + down.sum(1)  # (E, F)
    read = [gate_up.sum((0, 1)), *(part.sum(0) for part in shared)]
    read += [] if "router_reads_all" in mlp.experts.quirks else [router.sum(0)]
    return Squares(
        torch.stack(read).sum(0),
        middle.flatten(),
        torch.stack([down.sum((0, 2)), *(part.sum(1) for part in shared_down)]).sum(0),
        middle.sum(1) + router.sum(1),
        _total(router, gate_up, down, *shared, *shared_down),
    )


def _total(*squares: Tensor) -> Float[Tensor, "1"]:
    """Returns the sum of all numbers in the tensors."""
    return torch.stack([part.sum() for part in squares]).sum(0, keepdim=True)


def _squares(linear: Any) -> Float[Tensor, "outputs inputs"]:
    """Returns squared weights in float32."""
    return matrix_of(linear).float().square()


METHOD = Method(
    name="magnitude",
    title="Magnitude",
    reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks "
    "(arXiv 1506.02626)",
    choose=magnitude,
    reads=Reads(calibration=False),
    drops_branches=True,
    knows_experts=True,
)
