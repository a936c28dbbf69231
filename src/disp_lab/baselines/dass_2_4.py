"""DaSS at 2:4 (arXiv 2405.01943): Wanda's score, and in gated MLPs the channel that a weight feeds.

A weight of a gated MLP's gate or up scores `|W_ij|·‖Z_i‖₂^½`, where Z_i is the channel inside the
MLP that its row feeds, as down reads it. That factor is the same all along a row, so the four that
compete are neighbouring channels' weights of one input, as in the authors' release: in these two
layers the pattern lies across that of the tensor cores. Everything else, and a plain MLP, goes by
Wanda's score.

R outputs, C inputs of a layer.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from disp_lab.parts.baseline import Baseline, Maker
from disp_lab.parts.two_of_four import (
    ZEROS,
    best_by_input_norm,
    best_two_of_four,
    input_norms,
    pruned_block_by_block,
)
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.training.problem import PruningProblem


def dass_2_4(problem: PruningProblem) -> Maker:
    """Every linear layer, block after block."""
    mlp = problem.dense.family.mlp
    gated = len(mlp.reads) * mlp.fused > 1

    def kept_weights(
        path: str, weight: Float[Tensor, "R C"], moments: SecondMoments
    ) -> Bool[Tensor, "R C"]:
        if not gated or path not in mlp.reads:
            return best_by_input_norm(path, weight, moments)
        channels = input_norms(moments[mlp.writes]).sqrt().repeat(mlp.fused)
        return best_two_of_four((weight.abs() * channels[:, None]).T).T

    return pruned_block_by_block(problem, kept_weights)


BASELINE = Baseline(
    name="dass_2_4",
    title="DaSS 2:4",
    reference="Guo et al., Dependency-aware Semi-structured Sparsity of GLU Variants in Large "
    "Language Models (arXiv 2405.01943)",
    prepare=dass_2_4,
    not_smaller=ZEROS,
)
