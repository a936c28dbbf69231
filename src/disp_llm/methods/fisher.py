"""Fisher scores per block parameter (this project; docs/how-it-works.md).

The score of entry i is `log(F_i / c_i)`. `F_i` is the mean over calibration sequences of the
squared gradient of the loss with respect to the mask entry. `c_i` is the entry's cost: block
parameters or what else is limited. One threshold over all sites spends the budget where it matters
most.

The sequences are processed in rounds. In the first, all masks are ones. Each later round is nearer
to the asked size, under the masks that earlier sequences propose, so that a score accounts for
which other entries will be pruned. At keep 0.5 this nearly halves the perplexity of one-shot masks
(docs/experiment-log.md).

N entries of all sites.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.data.windows import Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Selection
from disp_llm.methods import OWN, Method
from disp_llm.runs.tensors import read_tensors, write_tensors
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.losses import mean_losses
from disp_llm.training.problem import PruningProblem, calibration_windows

NOTHING = torch.finfo(torch.float32).tiny
"""Smallest importance; stands for zero, which has no logarithm."""

ROUNDS = 8
"""Rounds of one-shot scores; the start of learning uses one (docs/experiment-log.md)."""


def fisher(problem: PruningProblem) -> Selection:
    """Returns the Fisher scores as the selection."""
    return Selection(fisher_scores(problem, ROUNDS))


def fisher_scores(problem: PruningProblem, rounds: int) -> Float[Tensor, " N"]:
    """Returns scores; reads F from the run folder if an earlier attempt computed it."""
    path = problem.job.run.scores_file
    if problem.job.run.has(path):
        file = read_tensors(path, "delete it to score again")
        importance = file.like("fisher", (problem.budget.layout.entries,))
        file.require(bool((importance >= 0).all()), "a mean of squares is negative")
    else:
        windows = calibration_windows(problem)
        with checkpointed_blocks(problem.dense, problem.training.recomputes):
            importance = fisher_importance(problem, windows, min(rounds, len(windows)))
        if problem.job.process.is_main:
            write_tensors(path, {"fisher": importance.cpu()})
            problem.job.run.update(path)
    return per_parameter(importance.to(problem.dense.device), problem.budget)


def fisher_importance(
    problem: PruningProblem, windows: Windows, rounds: int
) -> Float[Tensor, " N"]:
    """Returns F in float32, over all rounds; the last of several is at the problem's smallest size.

    Processes share the sequences of every round; the result does not depend on their number.
    """
    dense, budget, process = problem.dense, problem.budget, problem.job.process
    windows = windows.to(dense.device)
    progress = problem.job.count("scoring")
    sums = torch.zeros(budget.layout.entries, device=dense.device)
    done, importance, smallest = 0, sums, min(problem.keeps)
    with masked(dense) as masking:
        for number, part in enumerate(windows.tensor_split(rounds)):
            current_mask = torch.ones_like(sums)
            if number:
                size = smallest + (1 - smallest) * (rounds - 1 - number) / (rounds - 1)
                current_mask = project(per_parameter(importance, budget), budget, size).kept.float()
            for first in range(0, len(part), process.count):
                # All take the same number of turns, since processes that hold shards of a model run
                # together.
                place = min(first + process.index, len(part) - 1)
                mask = current_mask.clone().requires_grad_(True)
                masking.set(mask)
                mean_losses(dense, part[place : place + 1]).backward()
                assert mask.grad is not None
                if place == first + process.index:
                    sums += mask.grad.square()
                progress(done + place + 1, len(windows))
            done += len(part)
            importance = process.sum(sums.clone()) / done
    return importance


def per_parameter(importance: Float[Tensor, " N"], budget: Budget) -> Float[Tensor, " N"]:
    """Returns `log(F_i / c_i)`, with the mean F of a chunk; zero importance counts as `NOTHING`, so
    that all scores are finite."""
    importance = budget.layout.by_chunks(importance, budget.chunk)
    return importance.clamp(min=NOTHING).log() - budget.entry_costs.to(importance.device).log()


METHOD = Method(
    name="fisher",
    title="Fisher scores",
    reference="this project (docs/how-it-works.md)",
    choose=fisher,
    reads=OWN["fisher"],
    reads_weights=False,
    drops_branches=True,
    knows_experts=True,
)
