"""Weights -> the 8- or 4-bit grid on which they are stored.

R outputs, C inputs, K groups of inputs that share a scale: one group per row in 8 bits, groups of
32 inputs in 4 bits.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.names import Bits

GROUP = 32
"""Inputs that share a scale in 4 bits."""

ROWS = 32
"""Outputs per block of vLLM's 4-bit CPU kernels."""

STEPS = torch.linspace(6.5, 11, 10)
"""Candidate ratios of a group's largest number to its scale. The grid reaches −8: a larger ratio
clips that number, but represents the others more exactly."""

LIMITS: dict[Bits, tuple[int, int]] = {"int8": (-128, 127), "int4": (-8, 7)}
"""Smallest and largest stored integer."""


def fits(layer: nn.Module, bits: Bits) -> bool:
    """Returns whether a layer can be stored so: it must be linear and, in 4 bits, divide into whole
    groups of inputs and whole blocks of outputs."""
    if not isinstance(layer, nn.Linear):
        return False
    return bits != "int4" or not (layer.in_features % GROUP or layer.out_features % ROWS)


def if_unfit(bits: Bits) -> str:
    """What can be done about layers that do not fit."""
    return "prune with an --align of 32, or take int8" if bits == "int4" else "leave it out"


def scales_of(
    weight: Float[Tensor, "R C"], bits: Bits, dtype: torch.dtype | None = None
) -> Float[Tensor, "R K"]:
    """Returns the scales for rounding a weight, by default in the weight's data type."""
    dtype = dtype or weight.dtype
    if bits == "int4":
        return best_scales(weight.float().unflatten(-1, (-1, GROUP)), dtype)
    least, largest = LIMITS[bits]
    most = weight.float().abs().amax(-1, keepdim=True) / ((largest - least) / 2)
    return torch.where(most == 0, torch.finfo(torch.float32).eps, most).to(dtype)


def best_scales(
    groups: Float[Tensor, "R K 32"],
    dtype: torch.dtype,
    sizes: Float[Tensor, "K 32"] | float = 1.0,
) -> Float[Tensor, "R K"]:
    """Returns the scale of each group, among ten, with the least squared rounding error.

    A scale has the opposite sign of the group's largest number, which can then be −8 scales: the
    grid has 8 steps below zero and 7 above (as in GGUF's Q4_0).

    Args:
        sizes: error weights: mean square of the input of each weight, up to a factor.
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    tried = torch.stack([largest / -steps for steps in STEPS]).to(dtype).float()
    tried = torch.where(tried == 0, 1, tried)  # a group of zeros
    missed = ((groups / one).round().clamp(-8, 7) * one - groups for one in tried)
    lost = [(miss.square() * sizes).sum(-1) for miss in missed]
    best = torch.stack(lost).argmin(0, keepdim=True)
    return tried.squeeze(-1).gather(0, best)[0].to(dtype)


def on_grid(
    weight: Float[Tensor, "R C"], scales: Float[Tensor, "R K"], bits: Bits
) -> Float[Tensor, "R C"]:
    """Returns the weight rounded to its stored values, in float32."""
    groups = weight.float().unflatten(-1, (scales.shape[-1], -1))
    by = scales.float().unsqueeze(-1)
    return ((groups / by).round().clamp(*LIMITS[bits]) * by).flatten(-2)
