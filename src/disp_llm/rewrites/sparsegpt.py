"""SparseGPT: Frantar and Alistarh, Massive Language Models Can Be Accurately Pruned in One-Shot
(arXiv 2301.00774).

Columns of a layer are gone through from left to right. Of every four, a row drops the two with the
least `w_j²/[H⁻¹]_jj` (sections 3.3 and 3.4), and each dropped weight changes those to its right so
that the output over calibration text stays as near as it can (Eq. 3):
`W_j: -= w_j/[H⁻¹]_jj · [H⁻¹]_j:`. H is `Σ x·xᵀ` of the inputs from j on, with 1 % of its mean
diagonal added. All its inverses lie in one Cholesky factor U (Algorithm 1): `[H⁻¹]_jj = U_jj²`.

R outputs, C inputs of a layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.learn import Task
from disp_llm.methods.context import Context
from disp_llm.methods.walk import walk
from disp_llm.rewrites.rewrite import Maker, copied, damped, linear_paths
from disp_llm.rewrites.semi_structured import best_two_of_four, half_of

COLUMNS = 128
"""Columns to the right of so many are changed at once (the paper's lazy batch)."""

DAMPING = 0.01


def sparsegpt_2_4(task: Task, context: Context) -> Maker:
    """Every linear layer, block after block, behind the pruned ones.

    Raises:
        InputError: a layer's inputs are not a multiple of four, or the text is shorter than a
        window.
    """
    model = copied(task)

    def visit(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
        for path in linear_paths(task.family):
            weight = matrix_of(linear_at(block, path))
            weight.copy_(reconstructed(weight.float(), moments[path]))

    walk(model, task, context, visit)
    return half_of(model, task)


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
            kept = best_two_of_four(scores.T).T
            for column, stays in enumerate(kept, start=first):
                error = columns[column].masked_fill(stays, 0) / factor[column, column]
                columns[column:end] -= factor[column, column:end, None] * error
                columns[column].masked_fill_(~stays, 0)
                errors[column - start] = error
        columns[end:] -= factor[start:end, end:].T @ errors
    return columns.T


def inverse_factor(moment: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """The upper triangle U with `UᵀU = H⁻¹`, in float64; row j times U_jj is row j of the inverse
    of H without the inputs before j."""
    # Turned about, H = L·Lᵀ; turned back, L is upper and U its inverse. H⁻¹ itself is not formed.
    upper = torch.linalg.cholesky(damped(moment, DAMPING).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)
