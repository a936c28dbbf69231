"""Adjusts the weights of a layer to make up for pruned or rounded ones, over calibration text.

Columns are replaced one by one. The error of a column's new value is spread over all columns to its
right, so that the output changes as little as possible. With `e = (w_j − v_j)/[H⁻¹]_jj` a row
becomes `W: -= e·[H⁻¹]_j:` (optimal brain surgeon; for pruned weights SparseGPT, arXiv 2301.00774,
Eq. 3; for rounded weights GPTQ, arXiv 2210.17323, Eq. 2). H is `Σ x·xᵀ` of the inputs from j on,
plus 1 % of its mean diagonal. One Cholesky factor U holds all its inverses (Algorithm 1 of either
paper): `[H⁻¹]_jj = U_jj²`.

R outputs, C inputs of a layer.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

COLUMNS = 128
"""Columns per lazy batch (of both papers): those to its right are updated at once."""

DAMPING = 0.01
"""Share of H's mean diagonal that is added to its diagonal."""

Exchange = Callable[[int, Float[Tensor, "C R"]], Float[Tensor, " R"]]
"""Index of a column, and all columns as updated so far -> the column's new values. Of the columns
to its right, only those before the next multiple of COLUMNS are up to date."""


def compensated(
    weight: Float[Tensor, "R C"], factor: Float[Tensor, "C C"], exchange: Exchange
) -> Float[Tensor, "R C"]:
    """Returns the weights with every column replaced, from left to right.

    Args:
        factor: U of the inputs, from `inverse_factor`.
    """
    columns = weight.T.clone(memory_format=torch.contiguous_format)  # (C, R)
    for start in range(0, len(columns), COLUMNS):
        end = min(start + COLUMNS, len(columns))
        errors = torch.zeros_like(columns[start:end])
        for column in range(start, end):
            new = exchange(column, columns)
            error = (columns[column] - new) / factor[column, column]
            columns[column:end] -= factor[column, column:end, None] * error
            columns[column] = new
            errors[column - start] = error
        columns[end:] -= factor[start:end, end:].T @ errors
    return columns.T


def inverse_factor(moment: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """Returns the upper triangle U with `UᵀU = H⁻¹`, in float64. Row j times U_jj is row j of the
    inverse of H without the inputs before j."""
    # In reversed order H = L·Lᵀ; reversed again, L is upper and U its inverse. H⁻¹ is not formed.
    upper = torch.linalg.cholesky(damped(moment, DAMPING).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)


def damped(moment: Float[Tensor, "C C"], share: float) -> Float[Tensor, "C C"]:
    """Returns the matrix in float64 with a share of its mean diagonal added to the diagonal, since
    inputs may be dependent or all 0."""
    floor = torch.finfo(moment.dtype).tiny
    moment = moment.double()
    added = (share * moment.diagonal().mean()).clamp(min=floor)
    return moment + added * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
