"""LLM-Pruner: Ma et al., On the Structural Pruning of Large Language Models (arXiv 2305.11627).

A coupled structure (an intermediate channel, a KV head with its queries) counts by the first-order
change of the loss when it goes, `|Σ w·∂loss/∂w|` over its weights (Eq. 4, "vector-wise"), which is
the gradient of a mask on it. Every block loses the same share, but for those at either end, which
stay.
"""

import torch
from torch import Tensor

from disp_llm.learn import Task
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import Choice, masked
from disp_llm.methods.activations import uniform
from disp_llm.methods.context import Context, calibration_windows

ENDS = 0.1
"""Share of the blocks at either end that stays whole (the authors' scripts: 4 and 2 of 32)."""


def taylor(task: Task, context: Context) -> Choice:
    """Absolute mean gradients of the masks, as ranks within their block."""
    layout = task.budget.layout
    windows = calibration_windows(task, context.scores)
    device = next(task.model.parameters()).device
    head = head_of(task.model, task.family)
    mask = torch.ones(layout.entries, device=device, requires_grad=True)
    with masked(task.model, task.family, layout) as masking:
        masking.set(mask)
        for done, window in enumerate(windows, start=1):
            token_losses(task.model, head, window[None].to(device)).mean().backward()
            context.on_sequence(done, len(windows))
    assert mask.grad is not None
    ranks = uniform(mask.grad.abs(), task)
    return Choice(_keep_ends(ranks, task))


def _keep_ends(scores: Tensor, task: Task) -> Tensor:
    """The entries of the first and last blocks above all others."""
    layout = task.budget.layout
    blocks, each = len(layout.blocks), len(layout.sites)
    whole = int(ENDS * blocks)
    parts = [
        part + (place // each < whole or place // each >= blocks - whole)
        for place, part in enumerate(layout.split(scores))
    ]
    return torch.cat(parts)
