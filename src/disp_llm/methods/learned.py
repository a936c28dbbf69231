"""DISP-LLM (arXiv 2410.11988), and our default: logits that are trained through the masked model.

They start at the Fisher scores (or at random, as in the paper). The recipe says which estimator,
parametrisation and penalty are used, and whether every kept entry learns a scale as well.
"""

import torch

from disp_llm.masks.selection import Selection
from disp_llm.methods.fisher import fisher_scores
from disp_llm.methods.parts.method import Method
from disp_llm.methods.parts.scores import start_logits
from disp_llm.training.learning import learn
from disp_llm.training.pace import planned_steps
from disp_llm.training.problem import PruningProblem


def learned(problem: PruningProblem) -> Selection:
    """Trained logits and, where the recipe asks for them, scales."""
    start = torch.zeros(problem.budget.layout.entries, device=problem.dense.device)
    if problem.learn.start == "scores":
        middle = (min(problem.keeps) + max(problem.keeps)) / 2
        scores = fisher_scores(problem, rounds=1)
        start = start_logits(scores, problem.budget, middle, problem.learn.whole_bonus)

    def take(problem: PruningProblem, steps: int) -> Selection:
        return learn(problem, start, steps)

    return take(problem, planned_steps(problem, take))


METHOD = Method(
    name="learned",
    title="Learned masks",
    reference="Gao et al., DISP-LLM: Dimension-Independent Structural Pruning for Large Language "
    "Models (arXiv 2410.11988); our default differs from it (docs/how-it-works.md)",
    choose=learned,
    reads_weights=False,
    drops_branches=True,
    knows_experts=True,
    learns=True,
)
