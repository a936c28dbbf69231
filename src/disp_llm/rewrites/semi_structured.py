"""2:4 sparsity: of every four neighbouring weights the two with the best scores stay as they are.

Magnitude, Wanda and DaSS differ in the score alone. The layers stay dense `nn.Linear` with zeros: a
CPU has no 2:4 kernel, so milliseconds do not fall here. `stored` is what sparse hardware stores, 2
bits of index for each kept weight included: of 16-bit weights that is 0.5625 of the dense numbers,
and a share of 0.5 means this.

R outputs, C inputs of a layer, G groups of four.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config import InputError
from disp_llm.learn import Task
from disp_llm.masks import blocks_of
from disp_llm.methods.context import Context
from disp_llm.methods.walk import walk
from disp_llm.rewrites.rewrite import Maker, Rewritten, copied, linear_paths, stored_numbers

INDEX_BITS = 2
"""For each kept weight, its place among four."""


def magnitude_2_4(task: Task, context: Context) -> Maker:
    """Magnitude: Han et al., Learning both Weights and Connections (arXiv 1506.02626).

    The score is `|W_ij|`, which needs no text.

    Raises:
        InputError: groups of four do not fit a layer.
    """
    model = copied(task)
    for block in blocks_of(model, task.family):
        for path in linear_paths(task.family):
            weight = matrix_of(linear_at(block, path))
            weight.masked_fill_(~best_two_of_four(weight.float().abs()), 0)
    return half_of(model, task)


def wanda_2_4(task: Task, context: Context) -> Maker:
    """Wanda: Sun et al., A Simple and Effective Pruning Approach for LLMs (arXiv 2306.11695).

    The score is `|W_ij|·‖X_j‖₂` (Eq. 1), with what enters the layer behind the pruned blocks before
    it.

    Raises:
        InputError: groups of four do not fit a layer, or the text is shorter than a window.
    """
    return _pruned_by(_wanda, task, context)


def dass_2_4(task: Task, context: Context) -> Maker:
    """DaSS: Guo et al., Dependency-aware Semi-structured Sparsity of GLU Variants (arXiv
    2405.01943).

    A weight of a gated MLP's gate or up scores `|W_ij|·‖Z_i‖₂^½`, where Z_i is the channel inside
    the MLP that its row feeds, as down reads it. That factor is the same all along a row, so the
    four that compete are neighbouring channels' weights of one input, as in the authors' release:
    in these two layers the pattern lies across that of the tensor cores. Everything else, and a
    plain MLP, goes by Wanda's score.

    Raises:
        InputError: groups of four do not fit a layer, or the text is shorter than a window.
    """
    mlp = task.family.mlp
    gated = len(mlp.reads) * mlp.fused > 1

    def kept(path: str, weight: Tensor, moments: dict[str, Tensor]) -> Tensor:
        if not gated or path not in mlp.reads:
            return _wanda(path, weight, moments)
        channels = _norms(moments[mlp.writes]).sqrt().repeat(mlp.fused)
        return best_two_of_four((weight.abs() * channels[:, None]).T).T

    return _pruned_by(kept, task, context)


def best_two_of_four(scores: Float[Tensor, "R C"]) -> Bool[Tensor, "R C"]:
    """Which of each four neighbours along a row have the two highest scores.

    Raises:
        InputError: C is not a multiple of four.
    """
    if scores.shape[-1] % 4:
        raise InputError(
            f"2:4 takes weights in groups of four, and a layer has {scores.shape[-1]} in a line",
            flag="MODEL",
            mend="use a method that is not 2:4",
        )
    groups = scores.unflatten(-1, (-1, 4))  # (R, G, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(-1, groups.topk(2).indices, True).flatten(-2)


def half_of(model: PreTrainedModel, task: Task) -> Maker:
    """Hands out a model of which every group keeps two of four weights."""
    half = stored_numbers(model, task.family) / 2
    bits = 8 * model.dtype.itemsize

    def make(share: float) -> Rewritten:
        if share != 0.5:
            raise InputError(
                f"2:4 keeps half of the weights, not {share:g}", flag="--keep", mend="use 0.5"
            )
        return Rewritten(model, stored=half * (1 + INDEX_BITS / bits), multiplied=half)

    return make


def _pruned_by(
    kept: Callable[[str, Tensor, dict[str, Tensor]], Tensor], task: Task, context: Context
) -> Maker:
    """Prunes block after block by `kept`: path, weight (R, C), moments -> what stays (R, C)."""
    model = copied(task)

    def visit(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
        for path in linear_paths(task.family):
            weight = matrix_of(linear_at(block, path))
            weight.masked_fill_(~kept(path, weight.float(), moments), 0)

    walk(model, task, context, visit)
    return half_of(model, task)


def _wanda(
    path: str, weight: Float[Tensor, "R C"], moments: dict[str, Tensor]
) -> Bool[Tensor, "R C"]:
    return best_two_of_four(weight.abs() * _norms(moments[path]))


def _norms(moment: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """`‖X_j‖₂` of each input over all calibration tokens."""
    return moment.diag().sqrt()
