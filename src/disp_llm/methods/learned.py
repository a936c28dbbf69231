"""DISP-LLM (arXiv 2410.11988), and our default: logits trained through the masked model.

They start at the Fisher scores or, as in the paper, at random. The recipe sets the estimator, the
parametrisation and the penalty, and whether every kept entry also learns a scale.

N entries of all sites.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.config.names import BRANCHES, HEADS
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.selection import Selection
from disp_llm.methods import OWN, Method
from disp_llm.methods.fisher import NOTHING, fisher_scores
from disp_llm.training.learning import learn
from disp_llm.training.problem import PruningProblem, take_steps

CLAMP = 8.0
"""Largest |logit| at the start: beyond it a sigmoid has almost no slope."""

WHOLE_BONUS = 1.0
"""Added to the scores of KV heads and whole branches: learning recovers less of their contribution
than of channels' (docs/experiment-log.md)."""


def learned(problem: PruningProblem) -> Selection:
    """Returns trained logits and, if the recipe asks for them, scales and adapters."""
    start = start_of(problem)
    return take_steps(problem, lambda problem, steps: learn(problem, start, steps))


def start_of(problem: PruningProblem) -> Float[Tensor, " N"]:
    """Returns the logits before the first step; zeros for "random"."""
    if problem.learn.start == "random":
        return torch.zeros(problem.budget.layout.entries, device=problem.dense.device)
    middle = (min(problem.keeps) + max(problem.keeps)) / 2
    return start_logits(fisher_scores(problem, rounds=1), problem.budget, middle)


def start_logits(scores: Float[Tensor, " N"], budget: Budget, keep: float) -> Float[Tensor, " N"]:
    """Returns `2·(score − threshold)/std`, clamped: logits whose threshold at `keep` is near 0.
    Entries without importance, such as neurons that never fire, are raised to the worst of the
    others and do not count in std: their very low scores would make the others look alike."""
    importance = scores + budget.entry_costs.to(scores.device).log()
    some = importance > math.log(NOTHING) + 1.0
    scores = scores.clamp(min=scores[some].min())
    scores = scores + WHOLE_BONUS * budget.layout.entries_of(HEADS, *BRANCHES).to(scores)
    spread = scores - project(scores, budget, keep).threshold
    return (2 * spread / scores[some].std()).clamp(-CLAMP, CLAMP)


METHOD = Method(
    name="learned",
    title="Learned masks",
    reference="Gao et al., DISP-LLM: Dimension-Independent Structural Pruning for Large Language "
    "Models (arXiv 2410.11988); our default differs from it (docs/how-it-works.md)",
    choose=learned,
    reads=OWN["learned"],
    reads_weights=False,
    drops_branches=True,
    knows_experts=True,
)
