"""How each tensor of a compact model is made of tensors of the dense one.

A part says it as data, and `made` does it: with a loaded model, or with what is read of its files,
one tensor after the other. In float32 an adapter is added, then columns and rows are scaled; the
product is rounded to the data type of the weights, and only then are rows and columns cut, so that
what is cut here is, to the bit, what a masked model with these weights has.

I inputs and O outputs of a linear layer, K kept of a dimension; E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.masks.selection import Adapter

Read = Callable[[str], Tensor]
"""Gives a tensor of the dense model by its name."""


@dataclass(frozen=True)
class Cut:
    """What becomes of a tensor of the dense model; what is left out here changes nothing."""

    source: str
    """Its name in the dense model."""
    picks: tuple[tuple[int, Tensor], ...] = ()
    """Dimensions that are cut, one after the other, and int64 indices of what is kept of each: (K),
    or of a tensor with a slice for each expert (E, K) for those that the picks before have left."""
    factors: tuple[Tensor, ...] = ()
    """What it is multiplied by, of shapes that broadcast."""
    adapter: Adapter | None = None
    """What is added to the weight of a linear layer."""
    turned: bool = False
    """Whether that is stored as (I, O), as a `Conv1D` has it."""
    means: tuple["Cut", Float[Tensor, " I"]] | None = None
    """Of a bias, the weight of its layer and mean inputs of pruned columns, 0 at the others: what
    these would have added on average is added."""
    is_new: bool = False
    """Whether it is a bias that the dense model does not have."""

    @property
    def changes(self) -> bool:
        """Whether its numbers change."""
        return bool(self.factors) or self.adapter is not None or self.means is not None

    def adapted(self, stored: Tensor) -> Tensor:
        """A copy in float32 with the adapter added."""
        made = stored.to(torch.float32, copy=True)
        if self.adapter is not None:
            added = self.adapter.added().to(stored.device)
            made += added.T if self.turned else added
        return made

    def changed(self, read: Read) -> Tensor:
        """All of it with its new numbers."""
        if self.means is None:
            stored = read(self.source)
            if not self.changes:
                return stored
            made = self.adapted(stored)
        else:
            weight, inputs = self.means
            stored = read(weight.source)
            matrix = weight.adapted(stored)
            made = (matrix.T if weight.turned else matrix) @ inputs.to(stored.device)
            if not self.is_new:
                made += read(self.source)
        for factor in self.factors:
            made *= factor.to(made.device)
        return made.to(stored.dtype)

    def cut(self, whole: Tensor) -> Tensor:
        """What is kept of it."""
        for dim, kept in self.picks:
            kept = kept.to(whole.device)
            if kept.dim() == 1:
                whole = whole.index_select(dim, kept)
            else:
                shape = [len(kept)] + [1] * (whole.dim() - 1)
                shape[dim] = kept.shape[1]
                whole = whole.take_along_dim(kept.view(shape), dim)
        return whole


Part = Cut | Tensor
"""What a tensor is made of, or itself: a buffer of the dimensions that a branch reads or writes."""


def made(part: Part, read: Read) -> Tensor:
    """The tensor that a part describes."""
    return part if isinstance(part, Tensor) else part.cut(part.changed(read))
