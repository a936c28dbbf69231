"""Weights on the grid of 8 or 4 bits: the rounding by which they are stored.

R outputs, C inputs of a layer, K of its groups of inputs that share a scale: one a row in 8 bits,
32 inputs in 4.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.names import Bits

GROUP = 32
"""Inputs that share a scale in 4 bits."""

ROWS = 32
"""Outputs that vLLM's kernels of 4 bits for CPUs take together."""

STEPS = torch.linspace(6.5, 11, 10)
"""How many times its scale the largest number of a group may be, of which -8 can be said: where it
is more, that one is cut off, and the others are said more exactly."""

LIMITS: dict[Bits, tuple[int, int]] = {"int8": (-128, 127), "int4": (-8, 7)}
"""Least and largest number that is stored."""


def fits(layer: nn.Module, bits: Bits) -> bool:
    """Whether a layer can be stored so: it is linear, and in 4 bits consists of whole groups, and
    of rows as kernels take them."""
    if not isinstance(layer, nn.Linear):
        return False
    return bits != "int4" or not (layer.in_features % GROUP or layer.out_features % ROWS)


def scales_of(
    weight: Float[Tensor, "R C"], bits: Bits, dtype: torch.dtype | None = None
) -> Float[Tensor, "R K"]:
    """The scales that a weight is rounded by.

    Args:
        dtype: what they are stored in. Default: that of the weight.
    """
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
    """Of ten scales those by which the groups lose least if they are rounded.

    They have the other sign than the largest number of the group, which can then be -8 of them: of
    16 steps there are 8 below zero and 7 above it (as in GGUF's Q4_0).

    Args:
        dtype: what they are stored in.
        sizes: mean square of the input that a number is multiplied by, up to a factor.
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    tried = torch.stack([largest / -steps for steps in STEPS]).to(dtype).float()
    tried = torch.where(tried == 0, 1, tried)  # of nothing but zeros
    missed = ((groups / one).round().clamp(-8, 7) * one - groups for one in tried)
    lost = [(miss.square() * sizes).sum(-1) for miss in missed]
    best = torch.stack(lost).argmin(0, keepdim=True)
    return tried.squeeze(-1).gather(0, best)[0].to(dtype)


def on_grid(
    weight: Float[Tensor, "R C"], scales: Float[Tensor, "R K"], bits: Bits
) -> Float[Tensor, "R C"]:
    """The weight as it is stored, in float32."""
    groups = weight.float().unflatten(-1, (scales.shape[-1], -1))
    by = scales.float().unsqueeze(-1)
    return ((groups / by).round().clamp(*LIMITS[bits]) * by).flatten(-2)
