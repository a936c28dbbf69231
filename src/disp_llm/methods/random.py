"""Random: every entry's score is drawn from one uniform distribution; what any method must beat."""

import torch

from disp_llm.learn import Task
from disp_llm.loop import generator_of
from disp_llm.masks import Choice
from disp_llm.methods.context import Context


def random(task: Task, context: Context) -> Choice:
    """Scores (N)."""
    drawn = torch.rand(task.budget.layout.entries, generator=generator_of(task.seed, 1))
    return Choice(drawn.to(next(task.model.parameters()).device))
