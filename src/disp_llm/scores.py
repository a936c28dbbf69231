"""A calibration pass -> a score for every entry of every site.

Fisher: with all masks at one and every sequence's own mask as a leaf, `F_i` is the mean over
sequences of `(∂loss/∂m_i)²`, and the score `log(F_i / c_i)` with `c_i` the block parameters that the
entry costs. One threshold over all sites then spends each parameter where it matters most.

B batch, T tokens, N entries of all sites.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.budget import Budget, project
from disp_llm.families import Family
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import Layout, masked

CLAMP = 8.0
"""Largest |logit| at the start: beyond it a sigmoid's slope is gone."""


def fisher(
    model: nn.Module,
    family: Family,
    layout: Layout,
    windows: Int[Tensor, "B T"],
    on_sequence: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, " N"]:
    """Mean squared gradient of each sequence's loss with respect to its mask, float32."""
    head = head_of(model, family)
    total = torch.zeros(layout.entries, device=windows.device)
    with masked(model, family, layout) as masking:
        for done, window in enumerate(windows, start=1):
            mask = torch.ones(layout.entries, device=windows.device, requires_grad=True)
            masking.set(mask)
            token_losses(model, head, window[None]).mean().backward()
            total += mask.grad.square()
            on_sequence(done, len(windows))
    return total / len(windows)


def per_parameter(importance: Float[Tensor, " N"], budget: Budget) -> Float[Tensor, " N"]:
    """`log(F_i / c_i)`; an entry without any importance gets the lowest finite score."""
    tiny = torch.finfo(torch.float32).tiny
    return importance.clamp(min=tiny).log() - budget.entry_costs.to(importance.device).log()


def start_logits(scores: Float[Tensor, " N"], budget: Budget, keep: float) -> Float[Tensor, " N"]:
    """`2·(score − threshold)/std`, clamped: the logits whose threshold at `keep` is near 0."""
    spread = scores - project(scores, budget, keep).threshold
    return (2 * spread / scores.std()).clamp(-CLAMP, CLAMP)
