"""2:4 sparsity: keeps the two best-scored of every four neighbouring weights.

- Magnitude (arXiv 1506.02626) scores `|W_ij|` and needs no text.
- Wanda (arXiv 2306.11695) scores `|W_ij|·‖X_j‖₂` (Eq. 1), with X the layer's input behind the
  pruned blocks before it.
- DaSS (arXiv 2405.01943) scores gate and up weights of a gated MLP by `|W_ij|·‖Z_i‖₂^½`, where Z_i
  is the intermediate channel of row i, as down reads it. That factor is the same along a row, so
  the four that compete are weights of neighbouring channels for one input, as in the authors'
  release. In these two layers the pattern therefore lies across that of the tensor cores. All other
  layers, and plain MLPs, use Wanda's score; the release leaves attention dense.
- SparseGPT (arXiv 2301.00774) goes through columns from left to right. Of every four, a row loses
  the two with the least `w_j²/[H⁻¹]_jj` (sections 3.3 and 3.4), and each pruned weight changes
  those to its right.

The layers remain dense `nn.Linear` with zeros: a CPU has no 2:4 kernel, so milliseconds do not fall
here. `stored` counts what sparse hardware stores, with 2 index bits per kept weight: 0.5625 of the
original's numbers for 16-bit weights. A share of 0.5 means this.

R outputs, C inputs of a layer, G groups of four.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import Baseline, BaselineModel, Maker, copied, stored_numbers
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.methods.compensating import compensated, inverse_factor
from disp_llm.training.problem import PruningProblem

INDEX_BITS = 2
"""Bits for the place of a kept weight among four."""

Rewrite = Callable[[str, Float[Tensor, "R C"], SecondMoments], Float[Tensor, "R C"]]
"""A layer's path, its weight and its block's input moments -> the weight with zeros."""


def magnitude(problem: PruningProblem) -> Maker:
    """Prunes each linear layer by itself."""
    pruned = copied(problem)
    for linear in pruned.linears():
        weight = matrix_of(linear)
        weight.masked_fill_(~best_two_of_four(weight.float().abs()), 0)
    return half_of(pruned)


def wanda(problem: PruningProblem) -> Maker:
    """Prunes every linear layer by Wanda's score, block by block behind the pruned ones."""
    return rewritten_block_by_block(problem, by_input_norm)


def dass(problem: PruningProblem) -> Maker:
    """Prunes every linear layer by DaSS's score, block by block behind the pruned ones."""
    mlp = problem.dense.family.mlp
    gated = len(mlp.reads) * mlp.fused > 1

    def rewrite(path: str, weight: Tensor, moments: SecondMoments) -> Tensor:
        if not gated or path not in mlp.reads:
            return by_input_norm(path, weight, moments)
        channels = input_norms(moments[mlp.writes]).sqrt().repeat(mlp.fused)
        return weight.masked_fill(~best_two_of_four((weight.abs() * channels[:, None]).T).T, 0)

    return rewritten_block_by_block(problem, rewrite)


def sparsegpt(problem: PruningProblem) -> Maker:
    """Prunes every linear layer by SparseGPT, block by block behind the pruned ones."""

    def rewrite(path: str, weight: Tensor, moments: SecondMoments) -> Tensor:
        return reconstructed(weight, moments[path])

    return rewritten_block_by_block(problem, rewrite)


def best_two_of_four(scores: Float[Tensor, "R C"]) -> Bool[Tensor, "R C"]:
    """Marks the two highest scores of every four neighbours along a row.

    Raises:
        InputError: C is not a multiple of four.
    """
    if scores.shape[-1] % 4:
        raise InputError(
            f"2:4 takes weights in groups of four, and a layer has {scores.shape[-1]} in a line",
            field="model",
            hint="use a method that is not 2:4",
        )
    groups = scores.unflatten(-1, (-1, 4))  # (R, G, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(-1, groups.topk(2).indices, True).flatten(-2)


def by_input_norm(
    path: str, weight: Float[Tensor, "R C"], moments: SecondMoments
) -> Float[Tensor, "R C"]:
    """Zeroes weights by Wanda's score."""
    return weight.masked_fill(~best_two_of_four(weight.abs() * input_norms(moments[path])), 0)


def input_norms(moment: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """Returns `‖X_j‖₂` of each input over all calibration tokens."""
    return moment.diag().sqrt()


def reconstructed(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"]
) -> Float[Tensor, "R C"]:
    """Zeroes two weights of every group of four and changes the others to make up for them."""
    factor = inverse_factor(moment).to(weight.dtype)
    kept = torch.empty(0)

    def exchange(column: int, columns: Tensor) -> Tensor:
        nonlocal kept
        if column % 4 == 0:
            four = slice(column, column + 4)
            kept = best_two_of_four((columns[four] / factor.diag()[four, None]).square().T).T
        return columns[column].masked_fill(~kept[column % 4], 0)

    return compensated(weight, factor, exchange)


def rewritten_block_by_block(problem: PruningProblem, rewrite: Rewrite) -> Maker:
    """Prunes every linear layer, block by block; each block reads the output of the pruned ones."""
    pruned = copied(problem)

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        for path in pruned.linear_paths(block):
            weight = matrix_of(linear_at(block, path))
            weight.copy_(rewrite(path, weight.float(), moments))

    visit_blocks(problem, pruned, visit)
    return half_of(pruned)


def half_of(pruned: PrunableModel) -> Maker:
    """Hands out the pruned model, in which every group keeps two of four weights."""
    half = stored_numbers(pruned) / 2
    bits = 8 * pruned.dtype.itemsize

    def make(share: float) -> BaselineModel:
        if share != 0.5:
            raise InputError(
                f"2:4 keeps half of the weights, not {share:g}", field="keep", hint="use 0.5"
            )
        return BaselineModel(pruned.model, stored=half * (1 + INDEX_BITS / bits), multiplied=half)

    return make


_of_this_kind = partial(
    Baseline,
    not_smaller="its zeros are stored and multiplied like other weights where no kernel skips them",
)

MAGNITUDE = _of_this_kind(
    name="magnitude_2_4",
    title="Magnitude 2:4",
    reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks "
    "(arXiv 1506.02626)",
    prepare=magnitude,
    reads_text=False,
)
WANDA = _of_this_kind(
    name="wanda_2_4",
    title="Wanda 2:4",
    reference="Sun et al., A Simple and Effective Pruning Approach for Large Language Models "
    "(arXiv 2306.11695)",
    prepare=wanda,
)
SPARSEGPT = _of_this_kind(
    name="sparsegpt_2_4",
    title="SparseGPT 2:4",
    reference="Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned "
    "in One-Shot (arXiv 2301.00774)",
    prepare=sparsegpt,
)
DASS = _of_this_kind(
    name="dass_2_4",
    title="DaSS 2:4",
    reference="Guo et al., Dependency-aware Semi-structured Sparsity of GLU Variants in Large "
    "Language Models (arXiv 2405.01943)",
    prepare=dass,
)
