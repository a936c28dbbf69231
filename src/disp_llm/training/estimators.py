"""Estimators: logits in, masks with a gradient out.

An estimator returns a `Sample`: the mask for the model, the mask that the penalty counts and, if
the model needs no gradient, the mask's log-probability.

N entries of all sites.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from disp_llm.masks.budget import Projected


@dataclass(frozen=True)
class Draw:
    """Inputs from which an estimator draws masks."""

    logits: Float[Tensor, " N"]
    project: Callable[[Tensor], Projected]
    """Scores (N) -> the best masks within the step's budget."""
    noise: torch.Generator
    shift: float
    """Constant c added to the logits."""
    temperature: float
    """τ."""

    @property
    def shifted(self) -> Float[Tensor, " N"]:
        """Logits + c."""
        return self.logits + self.shift

    def uniform(self) -> Float[Tensor, " N"]:
        """Draws numbers in [0, 1) on the generator's own device, so that a seed means the same
        everywhere."""
        numbers = torch.rand(len(self.logits), generator=self.noise, device=self.noise.device)
        return numbers.to(self.logits.device)


@dataclass(frozen=True)
class Sample:
    """Masks of one step. Their forward value is 0 or 1, except for `gumbel_soft`'s `mask`."""

    mask: Float[Tensor, " N"]
    counted: Float[Tensor, " N"]
    log_probability: Float[Tensor, ""] | None = None
    """If given, the loss is a reward, and no gradient flows through the model."""

    def with_ones(self, never_pruned: Bool[Tensor, " N"]) -> "Sample":
        """Returns a copy with ones at entries that are always kept."""
        mask, counted = (m.masked_fill(never_pruned, 1.0) for m in (self.mask, self.counted))
        return replace(self, mask=mask, counted=counted)


def projected(draw: Draw) -> Sample:
    """Returns the projected masks, with the slope of a sigmoid around the threshold.

    `m = 1[x > h] + σ((x−h)/τ) − sg(σ((x−h)/τ))`: deterministic; meets the budget at every step.
    """
    chosen = draw.project(draw.logits.detach())
    soft = torch.sigmoid((draw.logits - chosen.threshold) / draw.temperature)
    mask = chosen.kept.to(soft.dtype) + (soft - soft.detach())
    return Sample(mask, mask)


def reinmax(draw: Draw) -> Sample:
    """Binary ReinMax (arXiv 2304.08612; the paper's Algorithm 2 with `logit` in step 4).

    At τ = 1 the gradient is exactly `½·|B − π0|`.
    """
    x = draw.shifted
    pi0 = torch.sigmoid(x)
    sample = _bernoulli(pi0, draw)
    pi1 = (sample + torch.sigmoid(x / draw.temperature)) / 2
    pi1 = torch.sigmoid((torch.logit(pi1) - x).detach() + x)
    pi2 = 2 * pi1 - pi0 / 2
    mask = sample + (pi2 - pi2.detach())
    return Sample(mask, mask)


def gumbel_soft(draw: Draw) -> Sample:
    """Follows the paper's released code, except for where the mask of S4 acts. The model runs with
    soft masks `σ((x + c + g)/τ)`, g one standard Gumbel; the penalty counts an independent rounded
    sample (there c = 3, τ = 0.4)."""
    soft, again = (
        torch.sigmoid((draw.shifted + _gumbel(draw)) / draw.temperature) for _ in range(2)
    )
    return Sample(soft, again.detach().round() + (again - again.detach()))


def policy_gradient(draw: Draw) -> Sample:
    """Draws Bernoulli masks whose loss is a reward (REINFORCE; for pruning arXiv 2406.10576). It
    needs forward passes only, so it can prune a model too big to back-propagate through."""
    x = draw.shifted / draw.temperature
    sample = _bernoulli(torch.sigmoid(x), draw)
    log_probability = -torch.nn.functional.binary_cross_entropy_with_logits(
        x, sample, reduction="sum"
    )
    return Sample(sample, sample, log_probability)


def _gumbel(draw: Draw) -> Tensor:
    uniform = draw.uniform()
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()


def _bernoulli(probability: Tensor, draw: Draw) -> Tensor:
    return (draw.uniform() < probability).to(probability.dtype).detach()


def deterministic_mask(
    logits: Float[Tensor, " N"], estimator: str, shift: float
) -> Bool[Tensor, " N"]:
    """Marks entries that a sampling estimator keeps more often than not: its deterministic masks,
    not yet cut to the budget. The single Gumbel of `gumbel_soft` has a non-zero median."""
    median = -math.log(math.log(2)) if estimator == "gumbel_soft" else 0.0
    return logits + shift + median > 0


ESTIMATORS: dict[str, Callable[[Draw], Sample]] = {
    "projected": projected,
    "reinmax": reinmax,
    "gumbel_soft": gumbel_soft,
    "policy_gradient": policy_gradient,
}
