"""Magnitude at 2:4: of every four neighbouring weights the two largest are kept; needs no text.

The score is `|W_ij|` (arXiv 1506.02626).
"""

from disp_lab.parts.baseline import Baseline, Maker, copied
from disp_lab.parts.two_of_four import ZEROS, best_two_of_four, half_of
from disp_llm.compact.modeling_disp_llm import matrix_of
from disp_llm.training.problem import PruningProblem


def magnitude_2_4(problem: PruningProblem) -> Maker:
    """Every linear layer by itself."""
    pruned = copied(problem)
    for linear in pruned.linears():
        weight = matrix_of(linear)
        weight.masked_fill_(~best_two_of_four(weight.float().abs()), 0)
    return half_of(pruned)


BASELINE = Baseline(
    name="magnitude_2_4",
    title="Magnitude 2:4",
    reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks "
    "(arXiv 1506.02626)",
    prepare=magnitude_2_4,
    reads_text=False,
    not_smaller=ZEROS,
)
