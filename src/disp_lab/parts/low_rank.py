"""A linear layer as two thin ones, and the rank that a share of its weights pays for.

O outputs, I inputs of a layer, R rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.errors import InputError


class LowRank(nn.Module):
    """Takes the place of a linear layer: `x -> left·(right·x)`; `left` has the bias."""

    def __init__(self, left: nn.Linear, right: nn.Linear):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, hidden: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Returns the layer's output."""
        return self.left(self.right(hidden))


def as_linear(
    weight: Float[Tensor, "O I"],
    bias: nn.Parameter | None = None,
    kind: type[nn.Linear] = nn.Linear,
) -> nn.Linear:
    """Returns a layer with a copy of these weights; a slice would keep the larger tensor alive."""
    outputs, inputs = weight.shape
    linear = kind(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        linear.bias = bias
    return linear


def rank_of(share: float, outputs: int, inputs: int) -> int:
    """Returns the largest rank with `rank·(outputs + inputs) <= share·outputs·inputs`.

    Raises:
        InputError: that is 0.
    """
    rank = int(share * outputs * inputs) // (outputs + inputs)
    if rank < 1:
        raise InputError(
            f"leaves a layer of {inputs} by {outputs} no rank", field="keep", hint="ask for more"
        )
    return rank
