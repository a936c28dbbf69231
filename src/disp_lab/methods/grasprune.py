"""GRASPrune (arXiv 2604.19398): projects gates onto one budget, then learns scales of what is left.

In the first stage every step keeps the KV heads and channels of the highest `p = σ(g/1.5)` that fit
one budget over the whole model. It runs with `mask + p − stop(p)`, so that dropped entries have a
gradient too. In the second the masks are fixed, and every kept entry learns a scale
`1 + tanh(g)/2`. Weights are frozen throughout.

After the released code, where the paper's text could not be read. Here a KV head is gated and
scaled at the input of the layer that writes; the code does so on its keys and values, so attention
logits scale too. A block that would lose all heads or channels gets its best one back within the
budget, not on top of it. g starts at Fisher scores: at the code's zeros all entries tie and the
first masks are arbitrary. Both stages read the learning text; the code's second stage reads its
validation text. Step sizes are larger for fewer steps, which keeps Adam's travel.

N entries of all sites.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.mask_training import LossUnder, train_masks, travelling
from disp_llm.config.names import COUPLED
from disp_llm.masks.budget import project
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.methods import Method, Reads
from disp_llm.methods.fisher import fisher_scores
from disp_llm.training.problem import PruningProblem, take_steps

TEMPERATURE = 1.5
"""Temperature of the sigmoid that makes p."""

RATE, BETAS = 0.005, (0.9, 0.99)
"""Constant step size and betas of AdamW in both stages. The code's step size is 0.01; of five
trials with few tokens half of it lost least (experiments/results/rival-trials.md)."""

MASK_STEPS, SCALE_STEPS = 2048, 512
"""Steps that this step size is for, in either stage."""

MOST_FOR_MASKS, MOST_FOR_SCALES = 10.0, 5.0
"""Largest factors on it: a step reads one window, and a scale that leaps follows its noise."""

SCALE_SHARE = 0.15
"""Share of the steps in the second stage (the code: up to a fifth)."""

DISTILLATION = 0.0
"""Share of the loss that is the divergence from the dense model (the code: none)."""

START = 1.0
"""Initial standard deviation of g: of 0.1, one or two steps of Adam, 20 steps leave no trace."""


class Gates(nn.Module):
    """g of the masks and g of the scales, one number for every entry."""

    def __init__(self, start: Float[Tensor, " N"]):
        super().__init__()
        self.masks = nn.Parameter(start.clone())
        self.scales = nn.Parameter(torch.zeros_like(start))

    def through(self, mask: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Returns the mask with the gradient of p, also for dropped entries."""
        soft = torch.sigmoid(self.masks / TEMPERATURE)
        return mask + (soft - soft.detach())

    def factors(self) -> Float[Tensor, " N"]:
        """Returns scales between ½ and 1½."""
        return 1 + torch.tanh(self.scales) / 2


def grasprune(problem: PruningProblem) -> Selection:
    """Returns g of the masks, for one size, and the scales."""
    prunable = ~problem.budget.never_pruned.to(problem.dense.device)
    scores = fisher_scores(problem, rounds=1)
    start = START * (scores - scores[prunable].mean()) / scores[prunable].std()
    gates = take_steps(problem, lambda problem, steps: trained_gates(problem, start, steps))
    with torch.no_grad():
        scales = gates.factors().masked_fill(~prunable, 1.0)
        return Selection(gates.masks.detach(), Compensation(scales))


def trained_gates(problem: PruningProblem, start: Float[Tensor, " N"], steps: int) -> Gates:
    """Trains gates for `steps` steps of both stages; resumes from a checkpoint of the run."""
    budget, share = problem.budget, min(problem.keeps)
    never_pruned = budget.never_pruned.to(start.device)
    config = replace(problem.training, schedule="constant")
    scale_steps = round(SCALE_SHARE * steps)
    mask_steps = steps - scale_steps
    gates = Gates(start)
    mask_rate = travelling(RATE, MASK_STEPS, mask_steps, MOST_FOR_MASKS)
    scale_rate = travelling(RATE, SCALE_STEPS, scale_steps, MOST_FOR_SCALES)
    optimizer = torch.optim.AdamW(
        [
            {"params": [gates.masks], "lr": mask_rate},
            {"params": [gates.scales], "lr": scale_rate},
        ],
        betas=BETAS,
        weight_decay=0.0,
    )

    def batch_loss(
        step: int, noise: torch.Generator, loss_under: LossUnder
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if step == mask_steps:  # without moments, gates without a gradient stand still
            optimizer.state.clear()
        mask = project(gates.masks, budget, share, problem.align).kept.float()
        if step < mask_steps:
            gate, idle = gates.through(mask), gates.scales
        else:
            gate, idle = mask * gates.factors(), gates.masks
        loss = loss_under(gate.masked_fill(never_pruned, 1.0))
        # The loop exchanges gradients of all that is trained: the idle stage's are zero.
        return loss + 0 * idle.sum(), {"loss": loss}

    train_masks(problem, config, steps, gates, optimizer, batch_loss, distill=DISTILLATION)
    return gates


METHOD = Method(
    name="grasprune",
    title="GRASPrune",
    reference="Wang et al., GRASPrune: Global Gating for Budgeted Structured Pruning of Large "
    "Language Models (arXiv 2604.19398)",
    choose=grasprune,
    reads=Reads(gradients=True, steps=True),
    reads_weights=False,
    sites=COUPLED,
    one_size=True,
)
