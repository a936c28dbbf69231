"""SparseGPT at 2:4 (arXiv 2301.00774): two of every four weights are pruned, the others make up.

Columns of a layer are gone through from left to right. Of every four, a row loses the two with the
least `w_j²/[H⁻¹]_jj` (sections 3.3 and 3.4), and each pruned weight changes those to its right
(methods/parts/compensating.py).

R outputs, C inputs of a layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import Baseline, Maker, copied
from disp_lab.parts.two_of_four import ZEROS, best_two_of_four, half_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.methods.compensating import compensated, inverse_factor
from disp_llm.training.problem import PruningProblem


def sparsegpt_2_4(problem: PruningProblem) -> Maker:
    """Every linear layer, block after block, behind the pruned ones.

    Raises:
        InputError: a layer's inputs are not a multiple of four, or the text is shorter than a
        window.
    """
    pruned = copied(problem)

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        for path in pruned.linear_paths(block):
            weight = matrix_of(linear_at(block, path))
            weight.copy_(reconstructed(weight.float(), moments[path]))

    visit_blocks(problem, pruned, visit)
    return half_of(pruned)


def reconstructed(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"]
) -> Float[Tensor, "R C"]:
    """The weights with two zeros in every group of four, and the others changed to make up.

    Raises:
        InputError: C is not a multiple of four.
    """
    factor = inverse_factor(moment).to(weight.dtype)
    kept = torch.empty(0)

    def exchange(column: int, columns: Tensor) -> Tensor:
        nonlocal kept
        if column % 4 == 0:
            four = slice(column, column + 4)
            kept = best_two_of_four((columns[four] / factor.diag()[four, None]).square().T).T
        return columns[column].masked_fill(~kept[column % 4], 0)

    return compensated(weight, factor, exchange)


BASELINE = Baseline(
    name="sparsegpt_2_4",
    title="SparseGPT 2:4",
    reference="Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned "
    "in One-Shot (arXiv 2301.00774)",
    prepare=sparsegpt_2_4,
    not_smaller=ZEROS,
)
