"""Random: draws every entry's score from one uniform distribution; any method must beat it."""

import torch

from disp_llm.data.randomness import random_stream
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method, Reads
from disp_llm.training.problem import PruningProblem


def random(problem: PruningProblem) -> Selection:
    """Returns uniform scores."""
    noise = random_stream("start", problem.seed)
    drawn = torch.rand(problem.budget.layout.entries, generator=noise)
    return Selection(drawn.to(problem.dense.device))


METHOD = Method(
    name="random",
    title="Random",
    reference="none: what any method must beat",
    choose=random,
    reads=Reads(calibration=False),
    reads_weights=False,
    drops_branches=True,
    knows_experts=True,
)
