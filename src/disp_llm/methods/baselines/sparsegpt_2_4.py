"""SparseGPT at 2:4 (arXiv 2301.00774): two of every four weights are pruned, the others make up.

Columns of a layer are gone through from left to right. Of every four, a row loses the two with the
least `w_j²/[H⁻¹]_jj` (sections 3.3 and 3.4), and each pruned weight changes those to its right so
that the output over calibration text remains as near as it can (Eq. 3):
`W_j: -= w_j/[H⁻¹]_jj · [H⁻¹]_j:`. H is `Σ x·xᵀ` of the inputs from j on, with 1 % of its mean
diagonal added. All its inverses lie in one Cholesky factor U (Algorithm 1): `[H⁻¹]_jj = U_jj²`.

R outputs, C inputs of a layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.methods.parts.baseline import Baseline, Maker, copied, damped
from disp_llm.methods.parts.block_by_block import SecondMoments, visit_blocks
from disp_llm.methods.parts.two_of_four import ZEROS, best_two_of_four, half_of
from disp_llm.training.problem import PruningProblem

COLUMNS = 128
"""Columns to the right of so many are changed at once (the paper's lazy batch)."""

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it."""


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
    columns = weight.T.clone(memory_format=torch.contiguous_format)  # (C, R)
    for start in range(0, len(columns), COLUMNS):
        end = min(start + COLUMNS, len(columns))
        errors = torch.zeros_like(columns[start:end])
        for first in range(start, end, 4):
            four = slice(first, min(first + 4, end))
            scores = (columns[four] / factor.diag()[four, None]).square()
            best = best_two_of_four(scores.T).T
            for column, kept in enumerate(best, start=first):
                error = columns[column].masked_fill(kept, 0) / factor[column, column]
                columns[column:end] -= factor[column, column:end, None] * error
                columns[column].masked_fill_(~kept, 0)
                errors[column - start] = error
        columns[end:] -= factor[start:end, end:].T @ errors
    return columns.T


def inverse_factor(moment: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """The upper triangle U with `UᵀU = H⁻¹`, in float64; row j times U_jj is row j of the inverse
    of H without the inputs before j."""
    # In reversed order H = L·Lᵀ; reversed again, L is upper and U its inverse. H⁻¹ is not formed.
    upper = torch.linalg.cholesky(damped(moment, DAMPING).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)


BASELINE = Baseline(
    name="sparsegpt_2_4",
    title="SparseGPT 2:4",
    reference="Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned "
    "in One-Shot (arXiv 2301.00774)",
    prepare=sparsegpt_2_4,
    not_smaller=ZEROS,
)
