"""Weights of a layer that make up for those that are pruned or rounded, over calibration text.

Column by column, those to the right make up: what a column's new value misses changes them all,
so that the output remains as near as it can. With `e = (w_j − v_j)/[H⁻¹]_jj` the row gets
`W: -= e·[H⁻¹]_j:` (optimal brain surgeon; SparseGPT, arXiv 2301.00774, Eq. 3, for weights that are
pruned; GPTQ, arXiv 2210.17323, Eq. 2, for weights that are rounded). H is `Σ x·xᵀ` of the inputs
from j on, with 1 % of its mean diagonal added. All its inverses lie in one Cholesky factor U
(Algorithm 1 of either): `[H⁻¹]_jj = U_jj²`.

R outputs, C inputs of a layer.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

COLUMNS = 128
"""Columns to the right of so many are changed at once (the papers' lazy batch)."""

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it."""

Exchange = Callable[[int, Float[Tensor, "C R"]], Float[Tensor, " R"]]
"""The number of a column, and all columns as they have become -> its new values. Of the columns to
its right those before the next multiple of COLUMNS have been changed."""


def compensated(
    weight: Float[Tensor, "R C"], factor: Float[Tensor, "C C"], exchange: Exchange
) -> Float[Tensor, "R C"]:
    """The weights with every column exchanged, from left to right.

    Args:
        factor: U of the inputs, by `inverse_factor`.
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
    """The upper triangle U with `UᵀU = H⁻¹`, in float64; row j times U_jj is row j of the inverse
    of H without the inputs before j."""
    # In reversed order H = L·Lᵀ; reversed again, L is upper and U its inverse. H⁻¹ is not formed.
    upper = torch.linalg.cholesky(damped(moment, DAMPING).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)


def damped(moment: Float[Tensor, "C C"], share: float) -> Float[Tensor, "C C"]:
    """The matrix in float64, with a share of the mean of its diagonal added to the diagonal: inputs
    may be dependent, or 0 throughout."""
    floor = torch.finfo(moment.dtype).tiny
    moment = moment.double()
    added = (share * moment.diagonal().mean()).clamp(min=floor)
    return moment + added * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
