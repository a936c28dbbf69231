"""Sheared LLaMA: Xia et al., Accelerating Language Model Pre-training via Structured Pruning (arXiv
2310.06694).

Targeted structured pruning (section 2.1): hard-concrete masks (arXiv 1712.01312) on the residual
stream (one for the whole model), on every block's KV heads and on its intermediate channels are
learned under two multipliers for every width, `λ·(width − target) + φ·(width − target)²`, masks by
descent and multipliers by ascent, so that the model arrives at a shape that was given: the same in
every block. As everywhere in a comparison the weights stay frozen; the paper trains them with the
masks and for 50 B tokens after that.

D residual stream, L blocks, H KV heads, F intermediate, N entries of all sites.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.learn import Task, checkpointed_blocks, compiled_blocks, compiles
from disp_llm.loop import Pace, generator_of, train
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import BlockShape, Choice, masked
from disp_llm.methods.context import Context
from disp_llm.mixture import Mixture

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""β, γ and ζ of the hard-concrete distribution."""

START = 4.0
"""log α of every mask at first, nearly all of them 1: frozen weights cannot follow masks of ½."""

RATE = 0.1
"""Step size of masks and multipliers. The paper's 1.0 is for batches of 131 k tokens: with one
window a step it leaves a model that predicts nothing (docs/experiment-log.md)."""

WARM_UP = 0.2
"""Share of the steps in which the targets fall from the dense widths (the paper: 640 of 3,200)."""


@dataclass(frozen=True)
class Shape:
    """Widths of every block of the model that is aimed at."""

    hidden: int
    heads: int
    intermediate: int


def target_shape(block: BlockShape, share: float) -> Shape:
    """The uniform shape of that share of the block parameters: hidden and heads shrink by its root,
    the intermediate width takes what the budget leaves."""
    hidden = round(math.sqrt(share) * block.hidden)
    heads = max(round(math.sqrt(share) * block.heads), 1)
    of_attention = block.qkv + block.q
    budget = share * block.hidden * (of_attention + (block.pieces + 1) * block.intermediate)
    rest = budget / hidden - of_attention * heads / block.heads
    return Shape(hidden, heads, min(int(rest / (block.pieces + 1)), block.intermediate))


class HardConcrete(nn.Module):
    """log α of every mask, and the multipliers of every width."""

    def __init__(self, blocks: int, shape: BlockShape):
        super().__init__()
        self.blocks = blocks
        self.hidden = nn.Parameter(torch.full((1, shape.hidden), START))
        self.heads = nn.Parameter(torch.full((blocks, shape.heads), START))
        self.intermediate = nn.Parameter(torch.full((blocks, shape.intermediate), START))
        self.linear = nn.Parameter(torch.zeros(1 + 2 * blocks))
        self.quadratic = nn.Parameter(torch.zeros(1 + 2 * blocks))

    @property
    def masks(self) -> list[nn.Parameter]:
        return [self.hidden, self.heads, self.intermediate]

    @property
    def multipliers(self) -> list[nn.Parameter]:
        return [self.linear, self.quadratic]

    def flat(self, parts: list[Tensor]) -> Float[Tensor, " N"]:
        """Numbers of residual stream, heads and channels in the order of the flat vector."""
        stream, heads, channels = parts
        columns = [stream.expand(self.blocks, -1)] * 3 + [channels]
        return torch.cat([*columns, stream.expand(self.blocks, -1), heads], 1).flatten()

    def sample(self, noise: torch.Generator) -> Float[Tensor, " N"]:
        """A mask with entries in [0, 1], most of them 0 or 1."""

        def draw(log_alpha: Tensor) -> Tensor:
            uniform = torch.rand(log_alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
            logistic = uniform.logit().to(log_alpha.device)
            soft = torch.sigmoid((logistic + log_alpha) / TEMPERATURE)
            return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

        return self.flat([draw(log_alpha) for log_alpha in self.masks])

    def expected_widths(self) -> list[Float[Tensor, " W"]]:
        """Σ P(z > 0), of the stream (1), of heads (L) and of channels (L)."""
        edge = TEMPERATURE * math.log(-LOW / HIGH)
        return [torch.sigmoid(log_alpha - edge).sum(1) for log_alpha in self.masks]

    def constraint(self, aim: Float[Tensor, " 3"]) -> Tensor:
        """`Σ λ·g + φ·g²` with g the widths' relative distance to what is aimed at."""
        gaps = [
            (width - wanted) / log_alpha.shape[1]
            for width, wanted, log_alpha in zip(
                self.expected_widths(), aim, self.masks, strict=True
            )
        ]
        gap = torch.cat(gaps)
        return (self.linear * gap + self.quadratic * gap.square()).sum()


def sheared(task: Task, context: Context) -> Choice:
    """Logits whose projection is the target shape with the likeliest entries in it."""
    layout, device = task.budget.layout, task.model.device
    dense = layout.blocks[0]
    target = target_shape(dense, min(task.keeps))
    wide, narrow = (
        torch.tensor([s.hidden, s.heads, s.intermediate], dtype=torch.float32, device=device)
        for s in (dense, target)
    )
    trained = HardConcrete(len(layout.blocks), dense).to(device)
    mixture = Mixture(task.corpus).to(device)
    head, config = head_of(task.model, task.family), context.learn
    optimizer = torch.optim.AdamW(
        [{"params": trained.masks}, {"params": trained.multipliers, "maximize": True}],
        lr=RATE,
        weight_decay=0.0,
    )
    compiling = compiles(config, device)

    def backward(step: int) -> dict[str, Any]:
        noise = generator_of(task.seed, 3, step, context.accelerator.process_index)
        done = min((step + 1) / max(WARM_UP * config.steps, 1), 1.0)
        aim = wide + (narrow - wide) * done
        mean_loss = 0.0
        for _ in range(config.accumulate):
            masking.set(trained.sample(noise))
            tokens, _ = mixture.draw(config.batch, config.length, noise)
            loss = token_losses(task.model, head, tokens.to(device), compiled=compiling).mean()
            ((loss + trained.constraint(aim)) / config.accumulate).backward()
            mean_loss += float(loss.detach()) / config.accumulate
        return {"loss": mean_loss}

    per_step = config.length * config.batch * config.accumulate
    pace = Pace(config.steps, "constant", config.checkpoint_every, per_step)
    with (
        masked(task.model, task.family, layout) as masking,
        compiled_blocks(task.model, task.family, compiling),
        checkpointed_blocks(task.model, task.family, config.gradient_checkpointing),
    ):
        folder = context.folder / "checkpoint"
        train(trained, optimizer, backward, pace, folder, context.accelerator, context.on_step)
    with torch.no_grad():
        wanted = (target.hidden, target.heads, target.intermediate)
        first = [
            _first(log_alpha, count) for log_alpha, count in zip(trained.masks, wanted, strict=True)
        ]
        return Choice(trained.flat(first))


def _first(log_alpha: Float[Tensor, "L W"], count: int) -> Float[Tensor, "L W"]:
    """Probabilities of being kept, with the `count` largest of every row above all others."""
    likely = torch.sigmoid(log_alpha)
    best = torch.zeros_like(likely).scatter(1, likely.topk(count, dim=1).indices, 1.0)
    return likely + best
