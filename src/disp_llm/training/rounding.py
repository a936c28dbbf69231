"""Training with the rounding that weights will be stored with: the forward pass uses rounded
weights, and the gradient passes to the unrounded ones unchanged (straight through, arXiv
1308.3432)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from disp_llm.config.errors import InputError
from disp_llm.config.names import Bits
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.rounding import fits, if_unfit, on_grid, scales_of

SEARCHED = 8
"""Steps between searches for scales: weights move little in between."""


class Rounded(nn.Module):
    """Rounds a weight as it will be stored, with scales of the data type `dtype`."""

    scales: Tensor

    def __init__(self, weight: Tensor, bits: Bits, dtype: torch.dtype):
        super().__init__()
        self.bits, self.dtype = bits, dtype
        self.register_buffer("scales", None)  # a checkpoint holds the scales in use
        self.search(weight)

    @torch.no_grad()
    def search(self, weight: Tensor) -> None:
        """Finds the scales that suit the current weight."""
        self.scales = scales_of(weight, self.bits, self.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """Rounds the weight; its gradient, if any, passes unchanged."""
        with torch.no_grad():
            stored = on_grid(weight, self.scales, self.bits)
            if not weight.requires_grad:
                return stored.to(weight.dtype)
            missed = stored - weight
        return weight + missed


def require_fit(target: PrunableModel, bits: Bits) -> None:
    """Refuses bits in which no format stores this model."""
    if bits == "as-is":
        return
    if target.family.experts is not None:
        raise InputError(
            "are for linear layers, and the model is a mixture of experts",
            field="bits",
            hint="leave them out",
        )
    if not all(fits(linear, bits) for linear in target.linears()):
        raise InputError(
            "has layers that are not stored so",
            field="bits",
            hint=if_unfit(bits),
        )


@contextlib.contextmanager
def rounded(
    target: PrunableModel, bits: Bits, dtype: torch.dtype
) -> Iterator[Callable[[int], None]]:
    """Rounds the weights of the blocks' linear layers within the context; yields a function to call
    before each step with its number. Raises InputError if they do not fit the bits."""
    require_fit(target, bits)
    if bits == "as-is":
        yield lambda step: None
        return
    linears, roundings = list(target.linears()), list[Rounded]()
    for linear in linears:
        roundings.append(Rounded(linear.weight, bits, dtype))
        parametrize.register_parametrization(linear, "weight", roundings[-1], unsafe=True)

    def before(step: int) -> None:
        if step % SEARCHED == 0:
            for linear, one in zip(linears, roundings, strict=True):
                one.search(linear.parametrizations.weight.original)

    try:
        yield before
    finally:
        for linear in linears:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
