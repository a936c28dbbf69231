"""LLM-Pruner: Ma et al., On the Structural Pruning of Large Language Models (arXiv 2305.11627).

A weight counts by the first-order change of the loss when it goes, `|w·∂loss/∂w|`, and a coupled
structure (an intermediate channel, a KV head with its queries) by the sum over its weights (section
3.2, element-wise). Every block loses the same share, but for those at either end, which stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import is_turned, linear_at
from disp_llm.families import Branch
from disp_llm.learn import Task, checkpointed_blocks
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import Choice, blocks_of
from disp_llm.methods.context import Context, calibration_windows
from disp_llm.methods.coupled import Sizes, by_head, flat_of, preferred, sizes_of

ENDS = 0.1
"""Share of the blocks at either end that stays whole (the authors' scripts: 4 and 2 of 32)."""


def taylor(task: Task, context: Context) -> Choice:
    """Ranks of KV heads and intermediate channels within their block, for one size.

    Raises:
        InputError: nothing would be left of the blocks between the ends.
    """
    layout, family = task.budget.layout, task.family
    sizes = _sizes(task)
    windows = calibration_windows(task, context.scores)
    device = next(task.model.parameters()).device
    head = head_of(task.model, family)
    blocks = blocks_of(task.model, family)
    channels, heads = [], []
    with (
        checkpointed_blocks(task.model, family, context.learn.gradient_checkpointing),
        _gradients(blocks, (family.attention, family.mlp)),
    ):
        for done, window in enumerate(windows, start=1):
            token_losses(task.model, head, window[None].to(device)).mean().backward()
            context.on_sequence(done, len(windows))
        for block, shape, stays in zip(blocks, layout.blocks, sizes, strict=True):
            attention, mlp = (_changes(block, branch) for branch in (family.attention, family.mlp))
            of_heads = torch.stack([by_head(part, shape.heads) for part in attention]).sum(0)
            heads.append(preferred(of_heads, stays.heads))
            channels.append(preferred(torch.stack(mlp).sum(0), stays.channels))
    return Choice(flat_of(layout, channels, heads))


def _sizes(task: Task) -> list[Sizes]:
    """Whole blocks at either end, and between them what the budget leaves."""
    blocks = task.budget.layout.blocks
    ends = int(ENDS * len(blocks))
    between = len(blocks) - 2 * ends
    share = (min(task.keeps) * len(blocks) - 2 * ends) / between
    return [
        sizes_of(shape, share)
        if ends <= place < ends + between
        else Sizes(shape.heads, shape.intermediate)
        for place, shape in enumerate(blocks)
    ]


@contextmanager
def _gradients(blocks: nn.ModuleList, branches: tuple[Branch, ...]) -> Iterator[None]:
    """While the context lasts, the blocks' linear weights gather gradients."""
    weights = [
        linear_at(block, path).weight
        for block in blocks
        for branch in branches
        for path in (*branch.reads, branch.writes)
    ]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def _changes(block: nn.Module, branch: Branch) -> list[Float[Tensor, " K"]]:
    """Σ|w·∂loss/∂w| of what every inner dimension of a branch has in each of its projections."""

    def change(path: str) -> Float[Tensor, "D K"]:
        layer = linear_at(block, path)
        product = (layer.weight.detach().float() * layer.weight.grad.float()).abs()
        return product.T if is_turned(layer) else product

    rows = [change(path).sum(1) for path in branch.reads]
    pieces = [piece for row in rows for piece in row.chunk(branch.fused)]
    return [*pieces, change(branch.writes).sum(0)]
