"""Frozen weights in fewer bits: 8 (symmetric) or 4 (NF4, arXiv 2305.14314), in groups of 64.

O outputs, I inputs, G groups of a weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64
"""Neighbouring weights that share a scale."""

NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to its largest (arXiv 2305.14314, appendix E)."""


@dataclass(frozen=True)
class Rounded:
    """A weight as whole numbers with a scale for each group."""

    numbers: Tensor
    """(G, 64) in int8; of 4 bits (G, 32) in uint8, two in each."""
    scales: Tensor
    """(G, 1)."""
    shape: torch.Size
    dtype: torch.dtype
    """That of the weight."""

    def to(self, device: torch.device) -> "Rounded":
        """The same on another device."""
        numbers, scales = (part.to(device) for part in (self.numbers, self.scales))
        return Rounded(numbers, scales, self.shape, self.dtype)

    def weight(self) -> Tensor:
        """The weight (O, I) that they stand for."""
        numbers = self.numbers
        if numbers.dtype == torch.uint8:
            codes = torch.tensor(NF4, device=numbers.device)
            numbers = codes[torch.stack([numbers >> 4, numbers & 15], -1).flatten(1).int()]
        values = (numbers * self.scales.float()).flatten()[: self.shape.numel()]
        return values.view(self.shape).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.numbers.nbytes + self.scales.nbytes


def int8(weight: Tensor) -> Rounded:
    """Scales bring the largest of each group to 127."""
    groups = _grouped(weight)
    scales = (groups.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30).to(torch.bfloat16)
    numbers = (groups / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return Rounded(numbers, scales, weight.shape, weight.dtype)


def nf4(weight: Tensor) -> Rounded:
    """Each weight is the nearest of 16 quantiles of its group's largest."""
    groups = _grouped(weight)
    scales = groups.abs().amax(1, keepdim=True).clamp(min=1e-30).to(torch.bfloat16)
    codes = torch.tensor(NF4, device=weight.device)
    between = (codes[1:] + codes[:-1]) / 2
    numbers = torch.bucketize(groups / scales.float(), between).to(torch.uint8)
    packed = (numbers[:, ::2] << 4) | numbers[:, 1::2]
    return Rounded(packed, scales, weight.shape, weight.dtype)


ROUNDINGS: dict[str, Callable[[Tensor], Rounded]] = {"int8": int8, "nf4": nf4}


def _grouped(weight: Tensor) -> Tensor:
    """All numbers in float32, (G, 64); the last group is filled up with zeros."""
    flat = weight.detach().float().flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
