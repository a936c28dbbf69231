"""One-shot Fisher scores per block parameter (this project; docs/how-it-works.md).

`log(F_i / c_i)` with `F_i` the mean over calibration sequences of the squared gradient of the loss
with respect to the mask entry, and `c_i` the block parameters that the entry costs.

N entries of all sites.
"""

from jaxtyping import Float
from torch import Tensor

from disp_llm.masks.selection import Selection
from disp_llm.methods import OWN, Method
from disp_llm.methods.calibration import calibration_windows
from disp_llm.methods.scores import fisher_importance, per_parameter
from disp_llm.runs.files import write_tensors
from disp_llm.runs.tensors import read_tensors
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.problem import PruningProblem

ROUNDS = 8
"""Rounds of one-shot scores; the start of learning takes one (docs/experiment-log.md)."""


def fisher(problem: PruningProblem) -> Selection:
    """The scores as they are."""
    return Selection(fisher_scores(problem, ROUNDS))


def fisher_scores(problem: PruningProblem, rounds: int) -> Float[Tensor, " N"]:
    """Scores, in so many rounds, or as many as there are sequences.

    They are read from the run folder if an earlier attempt computed them. Processes share the
    calibration sequences.

    Raises:
        InputError: a window is longer than the text or than the model can read, or the file of an
        earlier attempt is damaged.
    """
    path = problem.job.run.scores_file
    if problem.job.run.has(path):
        file = read_tensors(path, "delete it to score again")
        importance = file.like("fisher", (problem.budget.layout.entries,))
        file.require(bool((importance >= 0).all()), "a mean of squares is negative")
    else:
        windows = calibration_windows(problem)
        rounds = min(rounds, problem.scores.calibration_sequences)
        with checkpointed_blocks(problem.dense, problem.training.recomputes):
            importance = fisher_importance(problem, windows, rounds)
        if problem.job.process.is_main:
            write_tensors(path, {"fisher": importance.cpu()})
            problem.job.run.update(path)
    return per_parameter(importance.to(problem.dense.device), problem.budget)


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
