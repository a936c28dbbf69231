"""Joint rank-k (arXiv 2402.16319): layers that read the same input share a factor of low rank.

The layers of a pair are stacked. The best rank-k approximation gives one shared factor and one
factor per layer: `[W_1; W_2] = U·Λ·Vᵀ`, `W_i ≈ (U_k·Λ_k)_i · V_kᵀ`. The pairs are query with key
and gate with up. The value and the writing layers stay as they are, so no share can be less than
their weights. Every pair keeps the same share of its weights.

Where a family stores such layers fused, they are one matrix already, the value included.

O outputs of a group's layers together, I inputs, R rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.baseline import (
    Baseline,
    BaselineModel,
    Maker,
    as_stored,
    copied,
    require_one_kind,
    stored_numbers,
)
from disp_lab.parts.low_rank import LowRank, as_linear, rank_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.models.architectures import Family
from disp_llm.training.problem import PruningProblem


class SharedFactor(nn.Linear):
    """The factor that two layers share: the second reuses the product computed for the first."""

    held: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B R"]:
        """Returns the product, computed once for two calls with the same input."""
        held, self.held = self.held, None
        if held is not None and held[0] is input:
            return held[1]
        output = super().forward(input)
        self.held = (input, output)
        return output


def joint_rank_k(problem: PruningProblem) -> Maker:
    """Factorises query with key and gate with up; a share of 1 changes nothing. Needs no text."""
    require_one_kind(problem)
    dense = problem.dense
    groups = groups_of(dense.family)
    bases = [{paths: joint_basis(block, paths) for paths in groups} for block in dense.blocks]
    all_numbers = stored_numbers(dense)
    joint = sum(
        matrix_of(linear_at(block, path)).numel()
        for block in dense.blocks
        for paths in groups
        for path in paths
    )

    def make(share: float) -> BaselineModel:
        of_joint = (share * all_numbers - (all_numbers - joint)) / joint
        if of_joint <= 0:
            raise InputError(
                f"{1 - joint / all_numbers:.2g} of the weights are in layers without a joint "
                "factor",
                field="keep",
                hint="ask for more",
            )
        made = copied(problem)
        if share < 1:
            for block, of_block in zip(made.blocks, bases, strict=True):
                for paths, basis in of_block.items():
                    factorise_jointly(block, paths, basis, of_joint)
        return as_stored(made)

    return make


def groups_of(family: Family) -> tuple[tuple[str, ...], ...]:
    """Returns paths of a block's layers that share a factor: one or two per group."""
    return family.attention.reads[:2], family.mlp.reads


def joint_basis(block: nn.Module, paths: tuple[str, ...]) -> Float[Tensor, "R I"]:
    """Returns Vᵀ of the stacked weights, the most important row first."""
    stacked = torch.cat([matrix_of(linear_at(block, path)) for path in paths])
    _, _, basis = torch.linalg.svd(stacked.float(), full_matrices=False)
    return basis[: rank_of(1.0, *stacked.shape)].clone()  # no share needs more


def factorise_jointly(
    block: nn.Module, paths: tuple[str, ...], basis: Float[Tensor, "R I"], share: float
) -> None:
    """Replaces the layers by `V_kᵀ` and `W_i·V_k`, which equals `(U_k·Λ_k)_i`."""
    layers = [linear_at(block, path) for path in paths]
    weights = [matrix_of(linear) for linear in layers]
    outputs = sum(len(weight) for weight in weights)
    common = basis[: rank_of(share, outputs, basis.shape[1])]
    kind = SharedFactor if len(paths) > 1 else nn.Linear
    right = as_linear(common.to(weights[0].dtype), kind=kind)
    for path, linear, weight in zip(paths, layers, weights, strict=True):
        left = as_linear((weight.float() @ common.T).to(weight.dtype), linear.bias)
        block.set_submodule(path, LowRank(left, right))


BASELINE = Baseline(
    name="joint_rank_k",
    title="Joint rank-k",
    reference="Peng et al., Data-free Weight Compress and Denoise for Large Language Models "
    "(arXiv 2402.16319)",
    prepare=joint_rank_k,
    reads_text=False,
)
