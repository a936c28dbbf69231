"""What a baseline declares about itself, and what all baselines use.

A baseline prepares itself once, mostly by running calibration text through the model, and then
makes a model of any size. That model runs as it is: cut, factorised or rotated layers are real, so
that perplexity and milliseconds are those of the thing itself.
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
    """A model of one size, and what it costs, in numbers of the model's dtype."""

    model: PreTrainedModel
    """It runs like the original."""
    stored: int | float
    """Numbers inside the blocks, in place of the linear layers' weights; an index counts by its
    bits."""
    multiplied: int | float
    """Multiplications inside the blocks for one token; half of the FLOPs."""


Maker = Callable[[float], BaselineModel]
"""The share of block parameters that is stored -> a model. Raises InputError for a share that the
baseline cannot give."""


@dataclass(frozen=True)
class Baseline:
    """A way to make a model smaller that does more than drop dimensions."""

    name: str
    """What `methods` of a comparison calls it: the name of its file."""
    title: str
    """What readers know it as."""
    reference: str
    """The paper: authors, title, where it can be found."""
    prepare: Callable[[PruningProblem], Maker]
    """Does what serves all sizes; what it returns makes one of them."""
    reads_text: bool = True
    """Whether it reads calibration sequences."""
    not_smaller: str = ""
    """Why what runs takes the time and the memory of the original; empty where it is smaller."""


def require_one_kind(problem: PruningProblem) -> None:
    """Refuses a model whose blocks do not all have the same modules.

    Raises:
        InputError: it is one.
    """
    if problem.dense.family.alternatives:
        raise InputError(
            "blocks of several kinds have nothing in common that this method could share",
            field="model",
            hint="use another method",
        )


def copied(problem: PruningProblem) -> PrunableModel:
    """A copy of the dense model that may be changed in place."""
    dense = problem.dense
    return PrunableModel(copy.deepcopy(dense.model), dense.family, dense.sites)


def as_stored(prunable: PrunableModel) -> BaselineModel:
    """A model each of whose stored numbers is multiplied once a token."""
    numbers = stored_numbers(prunable)
    return BaselineModel(prunable.model, numbers, numbers)


def stored_numbers(prunable: PrunableModel) -> int:
    """Numbers in the blocks' matrices, whatever layers hold them; norms, biases and convolutions do
    not count."""
    named = prunable.blocks.named_parameters()
    return sum(p.numel() for name, p in named if p.dim() == 2 and "norm" not in name)


Solve = Callable[[PruningProblem, PrunableModel, Layout, float], Float[Tensor, " N"]]
"""A problem, a copy of its original that is changed in place, the N entries of all sites and the
share of block parameters that is kept -> 1 for each entry that is kept, on the CPU."""


def models_of(problem: PruningProblem, solve: Solve) -> Maker:
    """Compact models of any share, each with its kept KV heads and channels solved anew, so that
    they make up for the others."""

    def make(share: float) -> BaselineModel:
        pruned = copied(problem)
        layout = replace(problem.dense, sites=(*SITES, HEADS)).layout
        kept = solve(problem, pruned, layout, share)
        compact = compact_model(pruned, Masks(layout, kept.bool(), Selection(kept)))
        return as_stored(PrunableModel(compact, pruned.family))

    return make
