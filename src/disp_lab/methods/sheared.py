"""Sheared LLaMA (arXiv 2310.06694): learns masks until the model has a given shape.

Targeted structured pruning (section 2.1) learns hard-concrete masks (arXiv 1712.01312) on the
residual stream (one for the whole model) and on each block's KV heads and intermediate channels.
Each width has two multipliers, `λ·(width − target) + φ·(width − target)²`. Masks descend and
multipliers ascend, so the model arrives at the given shape, the same in every block. Here the
weights are frozen; the paper trains them with the masks, and for 50 B tokens after that.

Here the stream's mask acts where blocks read and write; in the released code it also narrows the
embedding, every norm and the head. All blocks stay, which the paper masks too. Every block's widths
have multipliers of their own; the code has one pair for all heads and one for all channels. The
code's masks become scales of what is kept.

D residual stream, L blocks, H KV heads, F intermediate, W any of these widths, N entries of all
sites.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.mask_training import LossUnder, train_masks
from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS, SITES
from disp_llm.masks.selection import Selection
from disp_llm.masks.shapes import BlockShape
from disp_llm.methods import Method, Reads
from disp_llm.training.problem import PruningProblem, take_steps

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""β, γ and ζ of the hard-concrete distribution."""

START = 4.0
"""Initial log α of every mask, nearly all of them 1: frozen weights cannot follow masks of ½."""

BOUND = math.log(100)
"""Largest |log α| before every step, as in the released code (`constrain_parameters`)."""

RATE = 0.1
"""Step size of masks and multipliers. The paper's 1.0 is for batches of 131 k tokens: with one
window per step and without `BOUND` it left a model that predicts nothing."""

WARM_UP = 0.2
"""Share of the steps over which targets fall from the dense widths (the paper: 640 of 3,200)."""


class Shape(NamedTuple):
    """Target widths of every block."""

    hidden: int
    heads: int
    intermediate: int


def target_shape(block: BlockShape, share: float) -> Shape:
    """Returns the uniform shape with that share of the block parameters: hidden and heads shrink by
    its square root, and the intermediate width takes the rest of the budget."""
    hidden = round(math.sqrt(share) * block.hidden)
    heads = max(round(math.sqrt(share) * block.heads), 1)
    of_attention = block.qkv + block.q
    in_mlp = block.num_input_projections + 1
    budget = share * block.hidden * (of_attention + in_mlp * block.intermediate)
    rest = budget / hidden - of_attention * heads / block.heads
    return Shape(hidden, heads, min(int(rest / in_mlp), block.intermediate))


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
        """log α of the stream (1, D), of heads (L, H) and of channels (L, F)."""
        return [self.hidden, self.heads, self.intermediate]

    @property
    def multipliers(self) -> list[nn.Parameter]:
        """λ and φ of every width."""
        return [self.linear, self.quadratic]

    def flat(self, parts: list[Tensor]) -> Float[Tensor, " N"]:
        """Puts numbers of residual stream, heads and channels into the order of the flat vector."""
        stream, heads, channels = parts
        columns = [stream.expand(self.blocks, -1)] * 3 + [channels]
        return torch.cat([*columns, stream.expand(self.blocks, -1), heads], 1).flatten()

    @torch.no_grad()
    def bound(self) -> None:
        """Clamps every log α, so that a mask that is nearly 0 or 1 can still change."""
        for log_alpha in self.masks:
            log_alpha.clamp_(-BOUND, BOUND)

    def sample(self, noise: torch.Generator) -> Float[Tensor, " N"]:
        """Draws a mask with entries in [0, 1], most of them 0 or 1."""

        def draw(log_alpha: Tensor) -> Tensor:
            uniform = torch.rand(log_alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
            logistic = uniform.logit().to(log_alpha.device)
            soft = torch.sigmoid((logistic + log_alpha) / TEMPERATURE)
            return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

        return self.flat([draw(log_alpha) for log_alpha in self.masks])

    def expected_widths(self) -> list[Float[Tensor, " W"]]:
        """Returns Σ P(z > 0) of the stream (1), of heads (L) and of channels (L)."""
        edge = TEMPERATURE * math.log(-LOW / HIGH)
        return [torch.sigmoid(log_alpha - edge).sum(1) for log_alpha in self.masks]

    def constraint(self, aim: Float[Tensor, " 3"]) -> Tensor:
        """Returns `Σ λ·g + φ·g²`, g the gap between width and target over the dense width."""
        gaps = [
            (width - wanted) / log_alpha.shape[1]
            for width, wanted, log_alpha in zip(
                self.expected_widths(), aim, self.masks, strict=True
            )
        ]
        gap = torch.cat(gaps)
        return (self.linear * gap + self.quadratic * gap.square()).sum()


def sheared(problem: PruningProblem) -> Selection:
    """Returns an importance whose projection is the target shape with its likeliest entries.

    Raises:
        InputError: blocks have different numbers of heads.
    """
    dense = problem.budget.layout.blocks[0]
    if len({block.heads for block in problem.budget.layout.blocks}) > 1:
        raise InputError(
            "sheared prunes every block to one number of heads, and these blocks have several",
            field="method",
            hint="use another method",
        )
    target = target_shape(dense, min(problem.keeps))
    wide, narrow = (
        torch.tensor(widths, dtype=torch.float32, device=problem.dense.device)
        for widths in ((dense.hidden, dense.heads, dense.intermediate), target)
    )

    def take(problem: PruningProblem, steps: int) -> HardConcrete:
        def aim_at(step: int) -> Tensor:
            return wide + (narrow - wide) * min((step + 1) / max(WARM_UP * steps, 1), 1.0)

        return learned_masks(problem, steps, aim_at)

    trained = take_steps(problem, take)
    with torch.no_grad():
        importance = [
            _with_most_likely_first(log_alpha, count)
            for log_alpha, count in zip(trained.masks, target, strict=True)
        ]
        return Selection(trained.flat(importance))


def learned_masks(
    problem: PruningProblem, steps: int, aim_at: Callable[[int], Float[Tensor, " 3"]]
) -> HardConcrete:
    """Trains masks and multipliers for `steps` steps; resumes from a checkpoint of the run.

    Args:
        aim_at: gives the target widths of a step.
    """
    layout, device = problem.budget.layout, problem.dense.device
    config = replace(problem.training, schedule="constant")
    trained = HardConcrete(len(layout.blocks), layout.blocks[0]).to(device)
    optimizer = torch.optim.AdamW(
        [{"params": trained.masks}, {"params": trained.multipliers, "maximize": True}],
        lr=RATE,
        weight_decay=0.0,
    )

    def batch_loss(
        step: int, noise: torch.Generator, loss_under: LossUnder
    ) -> tuple[Tensor, dict[str, Tensor]]:
        trained.bound()
        loss = loss_under(trained.sample(noise))
        return loss + trained.constraint(aim_at(step)), {"loss": loss}

    train_masks(problem, config, steps, trained, optimizer, batch_loss)
    return trained


def _with_most_likely_first(log_alpha: Float[Tensor, "L W"], count: int) -> Float[Tensor, "L W"]:
    """Returns probabilities of being kept, the `count` largest of each row above all others."""
    probabilities = torch.sigmoid(log_alpha)
    best = probabilities.topk(count, dim=1).indices
    return probabilities + torch.zeros_like(probabilities).scatter(1, best, 1.0)


METHOD = Method(
    name="sheared",
    title="Sheared LLaMA",
    reference="Xia et al., Sheared LLaMA: Accelerating Language Model Pre-training via Structured "
    "Pruning (arXiv 2310.06694)",
    choose=sheared,
    reads=Reads(calibration=False, gradients=True, steps=True),
    reads_weights=False,
    sites=(*SITES, HEADS),
    one_size=True,
    every_site=True,
)
