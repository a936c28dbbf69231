"""SVD-LLM (arXiv 2403.07378): splits every linear layer into two of low rank, truncated so that
outputs over calibration text lose least.

With `S·Sᵀ = X·Xᵀ` (Cholesky) of a layer's calibration inputs and `W·S = U·Σ·Vᵀ`, dropping σ_i adds
exactly σ_i² to `‖W·X − W'·X‖²` (section 3.1). So the smallest are dropped: `W' = U_r·Σ_r·V_rᵀ·S⁻¹`,
stored as two layers. Every layer keeps the same share of its weights.

This is the paper's SVD-LLM (W): inputs are those of the dense model, and nothing is trained
afterwards (the paper's full variant continues with LoRA, section 3.2).

O outputs, I inputs of a layer, R rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import Baseline, BaselineModel, Maker, as_stored, copied
from disp_lab.parts.low_rank import LowRank, as_linear, rank_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.methods.compensating import damped
from disp_llm.training.problem import PruningProblem

DAMPING = 1e-6
"""Share of the mean diagonal of `X·Xᵀ` that is added to it: inputs may be linearly dependent."""


def svd_llm(problem: PruningProblem) -> Maker:
    """Factorises each linear layer by itself; a share of 1 changes nothing."""
    bases: list[dict[str, Tensor]] = []

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        bases.append({})
        for path in problem.dense.linear_paths(block):
            weight = matrix_of(linear_at(block, path))
            largest = rank_of(1.0, *weight.shape)  # no share needs more
            basis = whitened_basis(weight.float(), moments[path])[:, :largest]
            bases[index][path] = basis.contiguous()

    visit_blocks(problem, problem.dense, visit, changes=False)

    def make(share: float) -> BaselineModel:
        made = copied(problem)
        if share < 1:
            for block, of_block in zip(made.blocks, bases, strict=True):
                for path, basis in of_block.items():
                    factorise(block, path, basis, share)
        return as_stored(made)

    return make


def whitened_basis(
    weight: Float[Tensor, "O I"], moment: Float[Tensor, "I I"]
) -> Float[Tensor, "O R"]:
    """Returns all left singular vectors U of `W·S`, the most important first."""
    whitening = torch.linalg.cholesky(damped(moment, DAMPING))
    left, _, _ = torch.linalg.svd(weight.double() @ whitening, full_matrices=False)
    return left.to(weight.dtype)


def factorise(block: nn.Module, path: str, basis: Float[Tensor, "O R"], share: float) -> None:
    """Replaces a layer by `U_r` and `U_rᵀ·W`, which equals `Σ_r·V_rᵀ·S⁻¹` without inverting an S
    that may be nearly singular. A root of Σ in both layers would only change their scale."""
    dense = linear_at(block, path)
    weight = matrix_of(dense)
    first = basis[:, : rank_of(share, *weight.shape)]
    second = first.T @ weight.float()
    thin = (as_linear(first.to(weight.dtype), dense.bias), as_linear(second.to(weight.dtype)))
    block.set_submodule(path, LowRank(*thin))


BASELINE = Baseline(
    name="svd_llm",
    title="SVD-LLM",
    reference="Wang et al., SVD-LLM: Truncation-aware Singular Value Decomposition for Large "
    "Language Model Compression (arXiv 2403.07378)",
    prepare=svd_llm,
)
