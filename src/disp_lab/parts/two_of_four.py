"""2:4 sparsity: of every four neighbouring weights the two with the best scores are kept.

The layers remain dense `nn.Linear` with zeros: a CPU has no 2:4 kernel, so milliseconds do not fall
here. `stored` is what sparse hardware stores, 2 bits of index for each kept weight included: of
16-bit weights that is 0.5625 of the dense numbers, and a share of 0.5 means this.

R outputs, C inputs of a layer, G groups of four.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import BaselineModel, Maker, copied, stored_numbers
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.training.problem import PruningProblem

ZEROS = "its zeros are stored and multiplied like other weights where no kernel skips them"
"""Why a model of this kind is no smaller here."""

INDEX_BITS = 2
"""For each kept weight, its place among four."""


def best_two_of_four(scores: Float[Tensor, "R C"]) -> Bool[Tensor, "R C"]:
    """Which of each four neighbours along a row have the two highest scores.

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


def best_by_input_norm(
    path: str, weight: Float[Tensor, "R C"], moments: SecondMoments
) -> Bool[Tensor, "R C"]:
    """Wanda's choice: which weights have the two highest `|W_ij|·‖X_j‖₂` of four neighbours.

    Raises:
        InputError: C is not a multiple of four.
    """
    return best_two_of_four(weight.abs() * input_norms(moments[path]))


def input_norms(moment: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """`‖X_j‖₂` of each input over all calibration tokens."""
    return moment.diag().sqrt()


def pruned_block_by_block(
    problem: PruningProblem,
    kept_weights: Callable[[str, Float[Tensor, "R C"], SecondMoments], Bool[Tensor, "R C"]],
) -> Maker:
    """Prunes every linear layer, block after block, each given what the pruned blocks before it
    give.

    Args:
        kept_weights: from a layer's path, weight and what enters the layers of its block, which of
            the weights are kept.

    Raises:
        InputError: a window is longer than the text or than the model can read.
    """
    pruned = copied(problem)

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        for path in pruned.linear_paths(block):
            weight = matrix_of(linear_at(block, path))
            weight.masked_fill_(~kept_weights(path, weight.float(), moments), 0)

    visit_blocks(problem, pruned, visit)
    return half_of(pruned)


def half_of(pruned: PrunableModel) -> Maker:
    """Hands out a model of which every group keeps two of four weights."""
    half = stored_numbers(pruned) / 2
    bits = 8 * pruned.dtype.itemsize

    def make(share: float) -> BaselineModel:
        if share != 0.5:
            raise InputError(
                f"2:4 keeps half of the weights, not {share:g}", field="keep", hint="use 0.5"
            )
        return BaselineModel(pruned.model, stored=half * (1 + INDEX_BITS / bits), multiplied=half)

    return make
