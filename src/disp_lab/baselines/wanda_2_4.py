"""Wanda at 2:4 (arXiv 2306.11695): of every four neighbouring weights two are kept.

The score is `|W_ij|·‖X_j‖₂` (Eq. 1), with X what enters the layer behind the pruned blocks before
it.
"""

from disp_lab.parts.baseline import Baseline, Maker
from disp_lab.parts.two_of_four import ZEROS, best_by_input_norm, pruned_block_by_block
from disp_llm.training.problem import PruningProblem


def wanda_2_4(problem: PruningProblem) -> Maker:
    """Every linear layer, block after block."""
    return pruned_block_by_block(problem, best_by_input_norm)


BASELINE = Baseline(
    name="wanda_2_4",
    title="Wanda 2:4",
    reference="Sun et al., A Simple and Effective Pruning Approach for Large Language Models "
    "(arXiv 2306.11695)",
    prepare=wanda_2_4,
    not_smaller=ZEROS,
)
