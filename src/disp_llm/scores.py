"""A calibration pass -> a score for every entry of every site.

Fisher: with every sequence's mask as a leaf, `F_i` is the mean over sequences of `(∂loss/∂m_i)²`,
and the score `log(F_i / c_i)` with `c_i` the block parameters that the entry costs. One threshold
over all sites then spends each parameter where it matters most.

The sequences are taken in rounds. The first has all masks at one; each later one stands nearer to
the asked size, at the masks that the sequences so far propose, so that the score of an entry knows
who else will be gone (docs/experiment-log.md: at keep 0.5 this nearly halves the perplexity of
one-shot masks, for the same tokens). The mean goes over the sequences of all rounds.

B batch, T tokens, N entries of all sites.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.budget import Budget, project
from disp_llm.families import Family
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import masked

CLAMP = 8.0
"""Largest |logit| at the start: beyond it a sigmoid's slope is gone."""


def fisher(
    model: PreTrainedModel,
    family: Family,
    budget: Budget,
    windows: Int[Tensor, "B T"],
    keep: float,
    rounds: int,
    process: tuple[int, int] = (0, 1),
    total_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    on_sequence: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, " N"]:
    """Mean squared gradient of each sequence's loss with respect to its mask, float32.

    Args:
        windows: all calibration sequences; the result does not depend on how many processes share
            them.
        keep: the size that the last round stands at.
        rounds: how many; 1 is the plain Fisher score of the dense model.
        process: (index, number) of this process; it takes every number-th sequence of a round.
        total_over_processes: sums a tensor over processes.
    """
    head = head_of(model, family)
    sums = torch.zeros(budget.layout.entries, device=windows.device)
    index, processes = process
    done, importance = 0, sums
    with masked(model, family, budget.layout) as masking:
        for turn, part in enumerate(windows.tensor_split(rounds)):
            standing = torch.ones_like(sums)
            if turn:
                size = 1 - (1 - keep) * turn / (rounds - 1)
                standing = project(per_parameter(importance, budget), budget, size).kept.float()
            for place, window in enumerate(part):
                if place % processes != index:
                    continue
                mask = standing.clone().requires_grad_(True)
                masking.set(mask)
                token_losses(model, head, window[None]).mean().backward()
                assert mask.grad is not None
                sums += mask.grad.square()
                on_sequence(done + place + 1, len(windows))
            done += len(part)
            importance = total_over_processes(sums.clone()) / done
    return importance


def per_parameter(importance: Float[Tensor, " N"], budget: Budget) -> Float[Tensor, " N"]:
    """`log(F_i / c_i)`; an entry without any importance gets the lowest finite score."""
    tiny = torch.finfo(torch.float32).tiny
    return importance.clamp(min=tiny).log() - budget.entry_costs.to(importance.device).log()


def start_logits(scores: Float[Tensor, " N"], budget: Budget, keep: float) -> Float[Tensor, " N"]:
    """`2·(score − threshold)/std`, clamped: the logits whose threshold at `keep` is near 0."""
    spread = scores - project(scores, budget, keep).threshold
    return (2 * spread / scores.std()).clamp(-CLAMP, CLAMP)
