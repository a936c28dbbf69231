"""Logits in, masks with a gradient out.

An estimator returns two flat masks: the one that the model runs with and the one that the penalty
counts (they differ only for estimators that sample twice). The forward value of each is 0 or 1.

N entries of all sites.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.budget import Projected

MaskPair = tuple[Tensor, Tensor]
Project = Callable[[Tensor], Projected]


def projected(
    logits: Float[Tensor, " N"], project: Project, noise: torch.Generator, shift: float, temp: float
) -> MaskPair:
    """The exact-budget masks, with the slope of a sigmoid around the threshold.

    `m = 1[x > h] + σ((x−h)/τ) − sg(σ((x−h)/τ))`: deterministic, the budget met at every step.
    """
    chosen = project(logits.detach())
    soft = torch.sigmoid((logits - chosen.threshold) / temp)
    mask = chosen.kept.to(soft.dtype) + (soft - soft.detach())
    return mask, mask


def straight_through(
    logits: Float[Tensor, " N"], project: Project, noise: torch.Generator, shift: float, temp: float
) -> MaskPair:
    """A Bernoulli sample with the slope of its probability (Bengio et al., arXiv 1308.3432)."""
    probability = torch.sigmoid((logits + shift) / temp)
    sample = _bernoulli(probability, noise)
    mask = sample + (probability - probability.detach())
    return mask, mask


def reinmax(
    logits: Float[Tensor, " N"], project: Project, noise: torch.Generator, shift: float, temp: float
) -> MaskPair:
    """Binary ReinMax (arXiv 2304.08612; the paper's Algorithm 2 with `logit` in step 4).

    At τ = 1 the gradient is exactly `½·|B − π0|`.
    """
    return _reinmax(logits + shift, noise, temp, torch.logit)


def reinmax_printed(
    logits: Float[Tensor, " N"], project: Project, noise: torch.Generator, shift: float, temp: float
) -> MaskPair:
    """Algorithm 2 as the paper prints it, with `ln π1` where the inverse of the sigmoid belongs."""
    return _reinmax(logits + shift, noise, temp, torch.log)


def _reinmax(x: Tensor, noise: torch.Generator, temp: float, inverse: Callable) -> MaskPair:
    pi0 = torch.sigmoid(x)
    sample = _bernoulli(pi0, noise)
    pi1 = (sample + torch.sigmoid(x / temp)) / 2
    pi1 = torch.sigmoid((inverse(pi1) - x).detach() + x)
    pi2 = 2 * pi1 - pi0 / 2
    mask = sample + (pi2 - pi2.detach())
    return mask, mask


def _bernoulli(probability: Tensor, noise: torch.Generator) -> Tensor:
    """Drawn on the generator's own device, so that a seed means the same everywhere."""
    uniform = torch.rand(probability.shape, generator=noise, device=noise.device)
    return (uniform.to(probability.device) < probability).to(probability.dtype).detach()


ESTIMATORS: dict[str, Callable[..., MaskPair]] = {
    "projected": projected,
    "reinmax": reinmax,
    "reinmax_printed": reinmax_printed,
    "straight_through": straight_through,
}
