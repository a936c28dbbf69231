"""Deterministic differentiable pruning (arXiv 2603.08065): gates `ReLU(z)` under a soft budget.

The gate of a KV head or an intermediate channel is the ReLU of a trained z, with a slope of 1 on
either side of zero: nothing is sampled. What the budget counts is a steeper score of the gate,
whose width μ shrinks as training goes on, and multipliers that ascend bring the mean score of heads
and that of channels to their targets. The loss is cross-entropy + 2·KL(dense ‖ pruned). A gate that
is kept becomes a scale of its weights.

After the released code, where the paper's text could not be read; μ ends at its 0.1 (said to be
0.05 in the paper). Here the step sizes are larger for fewer steps, Adam's travel being kept, and
fall to a tenth, not to zero; one gate serves a KV head with all its queries, where the code has as
many KV heads as queries; the target of heads is a whole number of them over the model, where the
code rounds within a block, of which a block of few KV heads would lose none; and the cut at the end
is exact, the highest z of each kind, with a scale of 0.1 at least.

N entries of all sites, C kinds of entries.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from disp_lab.parts.coupled import top_k
from disp_lab.parts.mask_training import LossUnder, train_masks, travelling
from disp_llm.config.errors import InputError
from disp_llm.config.names import COUPLED, HEADS
from disp_llm.data.randomness import random_stream
from disp_llm.masks.budget import Budget
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.methods import Method, Reads
from disp_llm.training.problem import PruningProblem, take_steps

RATE, QUADRATIC_RATE = 0.02, 0.4
"""Step sizes of z and of the multipliers, and of the multiplier of the squared gap."""

PUBLISHED_STEPS, MOST = 1000, 10.0
"""What these step sizes are for, and the largest factor: z starts at 1, and a step that takes it to
zero would decide everything."""

WARM_UP = 0.1
"""Share of the steps in which the step size grows (the code: 100 of 1,000)."""

START, SPREAD, FLOOR = 1.0, 0.01, -0.1
"""Mean and standard deviation of z at first, and the lowest z: a gate can come back."""

WIDTH, LAST_WIDTH = 0.5, 0.1
"""μ at first and at the last step."""

DISTILLATION = 2.0
"""Weight of the divergence from the dense model, that of cross-entropy being 1."""

SMALLEST_SCALE = 0.1
"""Of an entry that is kept, though its gate may have closed."""


class Gates(nn.Module):
    """z of every entry, and the multipliers of every kind of entries."""

    def __init__(self, start: Float[Tensor, " N"], kinds: int):
        super().__init__()
        self.z = nn.Parameter(start)
        self.linear = nn.Parameter(torch.zeros(kinds))
        self.quadratic = nn.Parameter(torch.zeros(kinds))
        self.binary = nn.Parameter(torch.zeros(kinds))

    def forward(self) -> Float[Tensor, " N"]:
        """`ReLU(z)` with a slope of 1 everywhere."""
        return _straight_through(self.z, self.z.relu())

    def penalty(self, scores: list[Tensor], targets: list[float]) -> Tensor:
        """`Σ λ1·(p − α) + λ2·(p − α)² + λ3·mean(s·(1 − s))`, p the share that is pruned by score.

        Args:
            scores: s of the entries of each of the C kinds.
            targets: α, the share of each kind that is to be pruned.
        """
        terms = [
            torch.stack([gap, gap.square(), (s * (1 - s)).mean()])
            for s, target in zip(scores, targets, strict=True)
            for gap in [1 - s.mean() - target]
        ]
        multipliers = torch.stack([self.linear, self.quadratic, self.binary], 1)  # (C, 3)
        return (multipliers * torch.stack(terms)).sum()


def score(gate: Tensor, width: float) -> Tensor:
    """`s = clamp(1.2·σ(2.4·(gate − μ)/μ) − 0.1, 0, 1)`: 0 at 0 and 1 at 2μ; the slope passes the
    clamp."""
    soft = 1.2 * torch.sigmoid(2.4 * (gate - width) / width) - 0.1
    return _straight_through(soft, soft.clamp(0, 1))


def _straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """The hard value with the slope of the soft one."""
    return soft + (hard - soft).detach()


def width_at(step: int, steps: int) -> float:
    """μ of a step, counted from 0: it falls with the root of what is done."""
    return WIDTH - (WIDTH - LAST_WIDTH) * math.sqrt((step + 1) / steps)


@dataclass(frozen=True)
class Kind:
    """Entries that share a target: all KV heads of the model, or all channels."""

    entries: Bool[Tensor, " N"]
    kept: int
    """How many of them the size keeps."""

    @property
    def target(self) -> float:
        """α, the share that is pruned."""
        return 1 - self.kept / int(self.entries.sum())


def kinds_of(budget: Budget, share: float) -> list[Kind]:
    """What is pruned of heads and of channels: whole heads up to the share, then the channels (or
    what else is asked for alone) that the rest of the budget has no room for."""
    sites = [site for site in (HEADS, COUPLED[0]) if site in budget.sites]
    excess, kinds = (1 - share) * budget.dense_block_parameters, []
    for site in sites:
        entries = budget.layout.entries_of(site)
        price = float(budget.entry_costs[entries].mean())
        count = int(entries.sum())
        if site == sites[-1]:
            pruned = min(math.ceil(excess / price - 1e-6), count)
        else:
            pruned = int((1 - share) * count + 1e-9)
        excess -= pruned * price
        kinds.append(Kind(entries, count - pruned))
    return kinds


def ddp(problem: PruningProblem) -> Selection:
    """Ranks of heads and of channels by z, for one size, and the gates as scales.

    Raises:
        InputError: neither may be pruned.
    """
    kinds = kinds_of(problem.budget, min(problem.keeps))
    if not kinds:
        raise InputError(
            f"{METHOD.name} prunes at {' and '.join(COUPLED)}", field="sites", hint="name one"
        )

    def take(problem: PruningProblem, steps: int) -> Gates:
        return trained_gates(problem, kinds, steps)

    z = take_steps(problem, take).z.detach().cpu()
    importance, scales = torch.full_like(z, 2.0), torch.ones_like(z)
    for kind in kinds:
        importance[kind.entries] = top_k(z[kind.entries], kind.kept).float()
        scales[kind.entries] = z[kind.entries].clamp(min=SMALLEST_SCALE)
    return Selection(importance, Compensation(scales))


def trained_gates(problem: PruningProblem, kinds: list[Kind], steps: int) -> Gates:
    """Gates and multipliers after so many steps; goes on from a checkpoint of the problem's run."""
    device = problem.dense.device
    config = replace(problem.training, schedule="cosine")
    noise = torch.randn(
        problem.budget.layout.entries, generator=random_stream("start", problem.seed)
    )
    gates = Gates(START + SPREAD * noise, len(kinds)).to(device)
    rate, quadratic_rate = (
        travelling(rate, PUBLISHED_STEPS, steps, MOST) for rate in (RATE, QUADRATIC_RATE)
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": [gates.z]},
            {"params": [gates.linear, gates.binary], "maximize": True},
            {"params": [gates.quadratic], "lr": quadratic_rate, "maximize": True},
        ],
        lr=rate,
        weight_decay=0.0,
    )
    gated = torch.stack([kind.entries for kind in kinds]).any(0).to(device)
    entries = [kind.entries.to(device) for kind in kinds]
    targets = [kind.target for kind in kinds]

    def batch_loss(
        step: int, noise: torch.Generator, loss_under: LossUnder
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            gates.z.clamp_(min=FLOOR)
        gate = gates()
        loss = (1 + DISTILLATION) * loss_under(gate.masked_fill(~gated, 1.0))
        scores = score(gate, width_at(step, steps))
        penalty = gates.penalty([scores[kind] for kind in entries], targets)
        return loss + penalty, {"loss": loss}

    distill = DISTILLATION / (1 + DISTILLATION)
    train_masks(
        problem, config, steps, gates, optimizer, batch_loss, distill=distill, warmup=WARM_UP
    )
    return gates


METHOD = Method(
    name="ddp",
    title="DDP",
    reference="Huang et al., Deterministic Differentiable Structured Pruning for Large Language "
    "Models (arXiv 2603.08065)",
    choose=ddp,
    reads=Reads(calibration=False, gradients=True, steps=True),
    reads_weights=False,
    sites=COUPLED,
    one_size=True,
)
