"""Makes each tensor of a compact model from tensors of the dense one.

A part describes this as data, and `made` carries it out, with a loaded model or with tensors read
one by one from its files. In float32 it adds the adapter and scales columns and rows. It rounds the
result to the dtype of the weights and only then cuts rows and columns, so that compact and masked
model have the same weights to the bit.

I inputs and O outputs of a linear layer, K kept of a dimension; E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.masks.selection import Adapter

Read = Callable[[str], Tensor]
"""Returns a tensor of the dense model by its name."""


@dataclass(frozen=True)
class Cut:
    """How a tensor of the dense model changes; the defaults change nothing."""

    source: str
    """Name of the tensor in the dense model; of a new bias, the name that it would have there."""
    picks: tuple[tuple[int, Tensor], ...] = ()
    """Dimensions to cut, in this order, with the int64 indices that each keeps: (K), or (E, K) if
    every expert keeps others, with E the experts that earlier picks have kept."""
    factors: tuple[Tensor, ...] = ()
    """Factors of the tensor, of shapes that broadcast."""
    adapter: Adapter | None = None
    """Adapter to add to the weight of a linear layer."""
    turned: bool = False
    """Whether the weight is stored as (I, O), as in a `Conv1D`."""
    means: tuple["Cut", Float[Tensor, " I"]] | None = None
    """For a bias: its layer's weight, and the mean inputs of pruned columns, 0 at the others. The
    bias gains what these columns would have added on average."""
    is_new: bool = False
    """Whether it is a bias that the dense model does not have."""

    @property
    def changes(self) -> bool:
        """Whether any numbers change, apart from the cut."""
        return bool(self.factors) or self.adapter is not None or self.means is not None

    def adapted(self, stored: Tensor) -> Tensor:
        """Returns a float32 copy with the adapter added."""
        made = stored.to(torch.float32, copy=True)
        if self.adapter is not None:
            added = self.adapter.added().to(stored.device)
            made += added.T if self.turned else added
        return made

    def changed(self, read: Read) -> Tensor:
        """Returns the whole tensor with its new numbers, before the cut."""
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
        """Returns the kept part of a tensor."""
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
"""How a tensor is made, or the tensor itself: indices of dimensions a branch reads or writes."""


def made(part: Part, read: Read) -> Tensor:
    """Makes the tensor that a part describes."""
    return part if isinstance(part, Tensor) else part.cut(part.changed(read))
