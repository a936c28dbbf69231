"""SVD-LLM: Wang et al., Truncation-aware Singular Value Decomposition for Large Language Model
Compression (arXiv 2403.07378).

With `S·Sᵀ = X·Xᵀ` (Cholesky) of a layer's calibration inputs and `W·S = U·Σ·Vᵀ`, dropping σ_i adds
exactly σ_i² to `‖W·X − W'·X‖²` (section 3.1), so that the smallest go:
`W' = U_r·Σ_r·V_rᵀ·S⁻¹`, kept as two layers. Every layer keeps the same share of its weights.

This is the paper's SVD-LLM (W): inputs are those of the dense model, and nothing is trained
afterwards (the paper's full variant goes on with LoRA, section 3.2).

O outputs, I inputs of a layer, R rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.learn import Task
from disp_llm.masks import blocks_of
from disp_llm.methods.context import Context
from disp_llm.methods.walk import walk
from disp_llm.rewrites.low_rank import LowRank, as_linear, rank_of
from disp_llm.rewrites.rewrite import Maker, Rewritten, as_stored, copied, damped, linear_paths

DAMPING = 1e-6
"""Added to the diagonal of `X·Xᵀ`, relative to its mean: inputs may be dependent."""


def svd_llm(task: Task, context: Context) -> Maker:
    """Every linear layer by itself; a share of 1 leaves all of them as they are.

    Raises:
        InputError: the text is shorter than a window, or a share leaves a layer no rank.
    """
    left_factors: list[dict[str, Tensor]] = []

    def visit(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
        left_factors.append({})
        for path in linear_paths(task.family):
            weight = matrix_of(linear_at(block, path))
            largest = rank_of(1.0, *weight.shape)  # no share asks for more
            left = whitened_basis(weight.float(), moments[path])[:, :largest]
            left_factors[index][path] = left.contiguous()

    walk(task.model, task, context, visit, changes=False)

    def make(share: float) -> Rewritten:
        model = copied(task)
        if share < 1:
            for block, of_block in zip(blocks_of(model, task.family), left_factors, strict=True):
                for path, left in of_block.items():
                    factorise(block, path, left, share)
        return as_stored(model, task.family)

    return make


def whitened_basis(
    weight: Float[Tensor, "O I"], moment: Float[Tensor, "I I"]
) -> Float[Tensor, "O R"]:
    """All left singular vectors U of `W·S`, the most important first."""
    whitening = torch.linalg.cholesky(damped(moment, DAMPING))
    left, _, _ = torch.linalg.svd(weight.double() @ whitening, full_matrices=False)
    return left.to(weight.dtype)


def factorise(block: nn.Module, path: str, left: Float[Tensor, "O R"], share: float) -> None:
    """`U_r` and `U_rᵀ·W`, which is `Σ_r·V_rᵀ·S⁻¹` without an inverse of what may be nearly
    singular; a root of Σ in both layers would change their scale alone."""
    dense = linear_at(block, path)
    weight = matrix_of(dense)
    first = left[:, : rank_of(share, *weight.shape)]
    second = first.T @ weight.float()
    thin = (as_linear(first.to(weight.dtype), dense.bias), as_linear(second.to(weight.dtype)))
    block.set_submodule(path, LowRank(*thin))
