"""A calibration pass -> a score for every entry of every site.

The Fisher score of entry i is `log(F_i / c_i)`: with every sequence's mask as a leaf, `F_i` is the
mean over sequences of `(∂loss/∂m_i)²`, and `c_i` the block parameters that the entry costs. One
threshold over all sites then spends each parameter where it matters most.

The sequences are taken in rounds. In the first all masks are ones; each later round is nearer to
the asked size, under the masks that the sequences so far propose, so that the score of an entry
knows which others will be pruned (docs/experiment-log.md: at keep 0.5 this nearly halves the
perplexity of one-shot masks, for the same tokens). The mean is taken over the sequences of all
rounds.

N entries of all sites.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.config.names import BRANCHES, HEADS
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.training.losses import mean_losses
from disp_llm.training.problem import PruningProblem

CLAMP = 8.0
"""Largest |logit| at the start: beyond it a sigmoid has no slope."""


def fisher_importance(
    problem: PruningProblem, windows: Windows, rounds: int
) -> Float[Tensor, " N"]:
    """Mean squared gradient of each sequence's loss with respect to its mask, float32.

    Processes share the sequences of every round; the result does not depend on how many they are.

    Args:
        windows: all calibration sequences.
        rounds: number of rounds; the last is at the smallest size of the problem, and one round is
            the plain Fisher score of the dense model.
    """
    dense, budget, process = problem.dense, problem.budget, problem.job.process
    windows = windows.to(dense.device)
    progress = problem.job.count("scoring")
    sums = torch.zeros(budget.layout.entries, device=dense.device)
    done, importance = 0, sums
    with masked(dense) as masking:
        for number, part in enumerate(windows.tensor_split(rounds)):
            current_mask = torch.ones_like(sums)
            if number:
                size = 1 - (1 - min(problem.keeps)) * number / (rounds - 1)
                current_mask = project(per_parameter(importance, budget), budget, size).kept.float()
            for first in range(0, len(part), process.count):
                # All take as many turns, since those that hold parts of one model run together.
                place = min(first + process.index, len(part) - 1)
                mask = current_mask.clone().requires_grad_(True)
                masking.set(mask)
                mean_losses(dense, part.one(place)).backward()
                assert mask.grad is not None
                if place == first + process.index:
                    sums += mask.grad.square()
                progress(done + place + 1, len(windows))
            done += len(part)
            importance = process.sum(sums.clone()) / done
    return importance


def per_parameter(importance: Float[Tensor, " N"], budget: Budget) -> Float[Tensor, " N"]:
    """`log(F_i / c_i)`, of a chunk with its mean F; an entry without any importance gets the lowest
    finite score."""
    importance = budget.layout.by_chunks(importance, budget.chunk)
    tiny = torch.finfo(torch.float32).tiny
    return importance.clamp(min=tiny).log() - budget.entry_costs.to(importance.device).log()


WHOLE_BONUS = 1.0
"""Added to the scores of KV heads and whole branches where learning begins: it wins back less of
what these did than of what channels did (docs/experiment-log.md)."""


def start_logits(scores: Float[Tensor, " N"], budget: Budget, keep: float) -> Float[Tensor, " N"]:
    """`2·(score − threshold)/std`, clamped: the logits whose threshold at `keep` is near 0."""
    scores = scores + WHOLE_BONUS * budget.layout.entries_of(HEADS, *BRANCHES).to(scores)
    spread = scores - project(scores, budget, keep).threshold
    return (2 * spread / scores.std()).clamp(-CLAMP, CLAMP)
