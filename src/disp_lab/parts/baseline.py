"""What a baseline declares about itself, and what all baselines use.

A baseline prepares itself once, mostly by running calibration text through the model, and then
makes a model of any size. Cut, factorised or rotated layers in that model are real, so perplexity
and milliseconds are measured on the model itself.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS, SITES
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.training.problem import PruningProblem


@dataclass(frozen=True)
class BaselineModel:
    """A model of one size, with its costs in numbers of the model's dtype."""

    model: PreTrainedModel
    """It runs like the original."""
    stored: int | float
    """Numbers stored in the blocks in place of the linear layers' weights; an index counts by its
    bits."""
    multiplied: int | float
    """Multiplications inside the blocks for one token; half of the FLOPs."""


Maker = Callable[[float], BaselineModel]
"""Makes a model that stores a given share of the block parameters. Raises InputError if the
baseline cannot give that share."""


@dataclass(frozen=True)
class Baseline:
    """A way to make a model smaller that does more than drop dimensions."""

    name: str
    """Its name in `methods` of a comparison."""
    title: str
    """Its name for readers."""
    reference: str
    """The paper: authors, title, where it can be found."""
    prepare: Callable[[PruningProblem], Maker]
    """Does the work that all sizes share, and returns a function that makes one size."""
    reads_text: bool = True
    """Whether it reads calibration sequences."""
    not_smaller: str = ""
    """Why its model takes the original's time and memory; empty if it takes less."""


def require_one_kind(problem: PruningProblem) -> None:
    """Refuses a model whose blocks do not all have the same modules.

    Raises:
        InputError: the blocks are of several kinds.
    """
    if problem.dense.family.alternatives:
        raise InputError(
            "blocks of several kinds have nothing in common that this method could share",
            field="model",
            hint="use another method",
        )


def copied(problem: PruningProblem) -> PrunableModel:
    """Returns a copy of the dense model that may be changed in place."""
    dense = problem.dense
    return PrunableModel(copy.deepcopy(dense.model), dense.family, dense.sites)


def as_stored(prunable: PrunableModel) -> BaselineModel:
    """Returns a model with its costs: each stored number is multiplied once per token."""
    numbers = stored_numbers(prunable)
    return BaselineModel(prunable.model, numbers, numbers)


def stored_numbers(prunable: PrunableModel) -> int:
    """Counts the numbers in the blocks' matrices, whatever layers hold them; norms, biases and
    convolutions do not count."""
    named = prunable.blocks.named_parameters()
    return sum(p.numel() for name, p in named if p.dim() == 2 and "norm" not in name)


Solve = Callable[[PruningProblem, PrunableModel, Layout, float], Float[Tensor, " N"]]
"""Prunes a copy of the problem's original in place. Takes the problem, the copy, the layout of the
N entries and the share of block parameters to keep; returns 1 for each kept entry, on the CPU."""


def models_of(problem: PruningProblem, solve: Solve) -> Maker:
    """Makes compact models of any share. Each has its kept KV heads and channels solved anew, so
    that they make up for the pruned ones."""

    def make(share: float) -> BaselineModel:
        pruned = copied(problem)
        layout = replace(problem.dense, sites=(*SITES, HEADS)).layout
        kept = solve(problem, pruned, layout, share)
        compact = compact_model(pruned, Masks(layout, kept.bool(), Selection(kept)))
        return as_stored(PrunableModel(compact, pruned.family))

    return make
