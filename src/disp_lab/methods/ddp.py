"""Deterministic differentiable pruning (arXiv 2603.08065): gates `ReLU(z)` under a soft budget.

The gate of a KV head or an intermediate channel is the ReLU of a trained z, with a slope of 1 on
either side of zero: nothing is sampled. The budget counts a steeper score of the gate, whose width
μ shrinks during training. Multipliers, trained by ascent, bring the mean scores of heads and of
channels to their targets. The loss is cross-entropy + 2·KL(dense ‖ pruned). A kept gate becomes a
scale of its weights.

After the released code, where the paper's text could not be read; μ ends at the code's 0.1 (said to
be 0.05 in the paper). Here the step sizes are larger for fewer steps, which keeps Adam's travel,
and fall to a tenth, not to zero. One gate serves a KV head with all its queries; the code has as
many KV heads as queries. The target of heads is a whole number over the model; the code rounds
within a block, so a block of few KV heads would lose none. The final cut is exact: the highest z of
each kind, with a scale of 0.1 at least.

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
"""Step sizes: of z and the other multipliers, and of the multiplier of the squared gap."""

PUBLISHED_STEPS, MOST = 1000, 10.0
"""Steps that these step sizes are for, and the largest factor on them: z starts at 1, and a step
that takes it to zero would decide everything."""

WARM_UP = 0.1
"""Share of the steps over which the step size grows (the code: 100 of 1,000)."""

START, SPREAD, FLOOR = 1.0, 0.01, -0.1
"""Initial mean and standard deviation of z, and its lower bound: a closed gate can reopen."""

WIDTH, LAST_WIDTH = 0.5, 0.1
"""μ at first and at the last step."""

DISTILLATION = 2.0
"""Weight of the divergence from the dense model; cross-entropy has 1."""

SMALLEST_SCALE = 0.1
"""Smallest scale of a kept entry, even if its gate has closed."""


class Gates(nn.Module):
    """z of every entry, and the multipliers of every kind of entries."""

    def __init__(self, start: Float[Tensor, " N"], kinds: int):
        super().__init__()
        self.z = nn.Parameter(start)
        self.linear = nn.Parameter(torch.zeros(kinds))
        self.quadratic = nn.Parameter(torch.zeros(kinds))
        self.binary = nn.Parameter(torch.zeros(kinds))

    def forward(self) -> Float[Tensor, " N"]:
        """Returns `ReLU(z)` with a slope of 1 everywhere."""
        return _straight_through(self.z, self.z.relu())

    def penalty(self, scores: list[Tensor], targets: list[float]) -> Tensor:
        """Returns `Σ λ1·(p − α) + λ2·(p − α)² + λ3·mean(s·(1 − s))`, p the share pruned by score.

        Args:
            scores: s of the entries of each of the C kinds.
            targets: α, the share of each kind to prune.
        """
        terms = [
            torch.stack([gap, gap.square(), (s * (1 - s)).mean()])
            for s, target in zip(scores, targets, strict=True)
            for gap in [1 - s.mean() - target]
        ]
        multipliers = torch.stack([self.linear, self.quadratic, self.binary], 1)  # (C, 3)
        return (multipliers * torch.stack(terms)).sum()


def score(gate: Tensor, width: float) -> Tensor:
    """Returns `s = clamp(1.2·σ(2.4·(gate − μ)/μ) − 0.1, 0, 1)`: 0 at 0 and 1 at 2μ; the gradient
    passes the clamp."""
    soft = 1.2 * torch.sigmoid(2.4 * (gate - width) / width) - 0.1
    return _straight_through(soft, soft.clamp(0, 1))


def _straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Returns the hard value with the gradient of the soft one."""
    return soft + (hard - soft).detach()


def width_at(step: int, steps: int) -> float:
    """Returns μ at a step, counted from 0; it falls with the square root of the steps done."""
    return WIDTH - (WIDTH - LAST_WIDTH) * math.sqrt((step + 1) / steps)


@dataclass(frozen=True)
class Kind:
    """Entries that share a target: all KV heads of the model, or all channels."""

    entries: Bool[Tensor, " N"]
    kept: int
    """Number of these entries that the size keeps."""

    @property
    def target(self) -> float:
        """α, the share that is pruned."""
        return 1 - self.kept / int(self.entries.sum())


def kinds_of(budget: Budget, share: float) -> list[Kind]:
    """Returns how many heads and channels to keep. Heads lose whole ones up to the share; channels,
    or a kind that is pruned alone, lose what the budget still has no room for."""
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
    """Returns ranks of heads and of channels by z, for one size, with the gates as scales.

    Raises:
        InputError: neither heads nor channels may be pruned.
    """
    kinds = kinds_of(problem.budget, min(problem.keeps))
    if not kinds:
        raise InputError(
            f"{METHOD.name} prunes at {' and '.join(COUPLED)}", field="sites", hint="name one"
        )
    gates = take_steps(problem, lambda problem, steps: trained_gates(problem, kinds, steps))
    z = gates.z.detach().cpu()
    importance, scales = torch.full_like(z, 2.0), torch.ones_like(z)
    for kind in kinds:
        importance[kind.entries] = top_k(z[kind.entries], kind.kept).float()
        scales[kind.entries] = z[kind.entries].clamp(min=SMALLEST_SCALE)
    return Selection(importance, Compensation(scales))


def trained_gates(problem: PruningProblem, kinds: list[Kind], steps: int) -> Gates:
    """Trains gates and multipliers for `steps` steps; resumes from a checkpoint of the run."""
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
