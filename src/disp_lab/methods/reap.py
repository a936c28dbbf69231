"""REAP (Lasby et al., arXiv 2510.13999): removes whole experts of a mixture, those that add least.

An expert adds its output times the router's factor to each token routed to it. Its score is the
mean norm of that over these tokens, 0 if no token reaches it. Every layer loses equally many
experts: an expert's importance is its rank within its layer.

N tokens, E experts, C chosen by each token, D residual stream.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.activations import read_calibration
from disp_llm.compact.experts_disp_llm import run_experts
from disp_llm.config.errors import InputError
from disp_llm.config.names import EXPERTS
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method
from disp_llm.models.hooks import hooks
from disp_llm.training.problem import PruningProblem


@dataclass
class Added:
    """What the experts of one layer have added to tokens so far."""

    row: dict
    """Their row of the table of architectures; empty if there are none."""
    lengths: Float[Tensor, " E"]
    """Sum of the norms of what each expert added."""
    tokens: Float[Tensor, " E"]
    """Number of tokens routed to each expert."""

    def hook(self, experts: Any, args: tuple) -> None:
        """Forward pre-hook of the experts: hidden states (N, D), indices and factors (N, C)."""
        hidden, chosen, factors = args
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            one = torch.full_like(token, expert)[:, None]
            made = run_experts(
                experts, self.row, hidden[token], one, torch.ones_like(one, dtype=hidden.dtype)
            )
            lengths = factors[token, place].float() * made.float().norm(dim=-1)
            self.lengths[expert] += lengths.sum()
            self.tokens[expert] += len(token)

    @property
    def scores(self) -> Float[Tensor, " E"]:
        """Mean norm of what each expert adds."""
        return self.lengths / self.tokens.clamp(min=1)


@torch.no_grad()
def reap(problem: PruningProblem) -> Selection:
    """Returns the rank of each expert within its layer; dimensions have no importance.

    Raises:
        InputError: the model has no experts, or their scores multiply what they read; other sites
            are to be pruned; or a window is longer than the text or than the model can read.
    """
    dense, layout = problem.dense, problem.budget.layout
    if not layout.has_experts or set(problem.budget.sites) != {EXPERTS}:
        raise InputError(
            "reap prunes whole experts of mixtures and nothing else",
            field="method",
            hint="leave `sites` out, or use another method",
        )
    rows = [dense.branches_of(block)[1].experts for block in dense.blocks]
    if any(row is not None and "scores_inputs" in row.quirks for row in rows):
        raise InputError(
            "reap does not know experts whose scores multiply what they read",
            field="method",
            hint="use another method",
        )
    added = [
        Added(asdict(row) if row else {}, *torch.zeros(2, shape.experts, device=dense.device))
        for row, shape in zip(rows, layout.blocks, strict=True)
    ]
    mixtures: list[tuple[nn.Module, Added]] = [
        (block.get_submodule(row.module), one)
        for block, row, one in zip(dense.blocks, rows, added, strict=True)
        if row is not None
    ]
    with hooks(module.register_forward_pre_hook(one.hook) for module, one in mixtures):
        read_calibration(problem)
    importance = torch.zeros(layout.entries, device=dense.device)
    parts = zip(layout.names, layout.split(importance), strict=True)
    of_experts = (part for name, part in parts if name.endswith(f".{EXPERTS}"))
    for part, one in zip(of_experts, added, strict=True):
        part[:] = one.scores.argsort().argsort() / len(part)
    return Selection(importance)


METHOD = Method(
    name="reap",
    title="REAP",
    reference="Lasby et al., REAP the Experts: Why Pruning Prevails for One-Shot MoE compression "
    "(arXiv 2510.13999)",
    choose=reap,
    sites=(EXPERTS,),
    knows_experts=True,
)
