"""DISP-LLM: Dimension-Independent Structural Pruning for LLMs (arXiv 2410.11988), and our default.

Logits start at the Fisher scores (or at random, as in the paper) and are trained through the masked
model; which estimator, parametrisation and penalty is the recipe's choice.
"""

import torch

from disp_llm.learn import Task, learn
from disp_llm.masks import Choice
from disp_llm.methods.context import Context
from disp_llm.methods.fisher import fisher_scores
from disp_llm.scores import start_logits


def learned(task: Task, context: Context) -> Choice:
    """Trained logits and, where the recipe asks for them, scales."""
    device = next(task.model.parameters()).device
    start = torch.zeros(task.budget.layout.entries, device=device)
    if context.learn.start == "scores":
        middle = (min(task.keeps) + max(task.keeps)) / 2
        start = start_logits(fisher_scores(task, context, 1), task.budget, middle)
    return learn(
        task,
        start,
        context.learn,
        context.folder / "checkpoint",
        context.accelerator,
        context.on_step,
    )
