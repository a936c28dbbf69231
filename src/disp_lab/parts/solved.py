"""Models whose kept KV heads and channels were solved anew, so that they make up for the others.

N entries of all sites.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from disp_lab.parts.baseline import BaselineModel, Maker, as_stored, copied
from disp_llm.config.names import HEADS, SITES
from disp_llm.export.cutting import compact_model
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.training.problem import PruningProblem

Solve = Callable[[PruningProblem, PrunableModel, Layout, float], Float[Tensor, " N"]]
"""A problem, a copy of its dense model that is changed in place, the entries of all sites and the
share of block parameters that is kept -> 1 for each entry that is kept, on the CPU."""


def models_of(problem: PruningProblem, solve: Solve) -> Maker:
    """Compact models of any share, each solved by itself."""

    def make(share: float) -> BaselineModel:
        pruned = copied(problem)
        layout = replace(problem.dense, sites=(*SITES, HEADS)).layout
        kept = solve(problem, pruned, layout, share)
        compact = compact_model(pruned, Masks(layout, kept.bool(), Selection(kept)))
        return as_stored(PrunableModel(compact, pruned.family))

    return make
