"""First-order change of the loss when the weights of a coupled structure are removed.

O outputs, I inputs of a layer, K inner dimensions of a branch, H KV heads, F intermediate.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.coupled import by_head, row_ranges
from disp_llm.compact.modeling_disp_llm import is_conv1d, linear_at
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import BlockShape
from disp_llm.models.architectures import Branch


@contextmanager
def weight_gradients(dense: PrunableModel) -> Iterator[None]:
    """Lets the blocks' linear weights collect gradients inside the context."""
    weights = [linear.weight for linear in dense.linears()]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def changes_of(
    dense: PrunableModel, block: nn.Module, shape: BlockShape
) -> tuple[Float[Tensor, " H"], Float[Tensor, " F"]]:
    """Returns `Σ|w·∂loss/∂w|` over the weights of each KV head with its queries (empty if heads are
    not a site), and of each intermediate channel."""
    attention, mlp = (_changes(block, branch) for branch in dense.branches_of(block))
    of_heads = torch.stack([by_head(part, shape.heads) for part in attention]).sum(0)
    return of_heads, torch.stack(mlp).sum(0)


def _changes(block: nn.Module, branch: Branch) -> list[Float[Tensor, " K"]]:
    """Returns these sums for each inner dimension of a branch, one tensor per projection."""

    def change(path: str) -> Float[Tensor, "O I"]:
        layer = linear_at(block, path)
        product = (layer.weight.detach().float() * layer.weight.grad.float()).abs()
        return product.T if is_conv1d(layer) else product

    projections = [
        part
        for path in branch.reads
        for part in row_ranges(block, branch, path, change(path).sum(1))
    ]
    return [*projections, change(branch.writes).sum(0)]
