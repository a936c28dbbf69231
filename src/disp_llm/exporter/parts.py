"""How each tensor of a compact model is made of tensors of the dense one.

A part says it as data, and `made` does it: with a loaded model, or with what is read of its files,
one tensor after the other. In float32 an adapter is added, then columns and rows are scaled; the
product is rounded to the data type of the weights, and only then are rows and columns cut, so that
what is cut here is, to the bit, what a masked model with these weights has.

I inputs and O outputs of a linear layer, C and R kept of them, K kept of the residual stream; E
experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from disp_llm.masks.selection import Adapter

Read = Callable[[str], Tensor]
"""Gives a tensor of the dense model by its name."""


@dataclass(frozen=True)
class Weight:
    """The weight of a linear layer; what is None changes nothing."""

    source: str
    """Its name in the dense model."""
    turned: bool = False
    """Whether it is stored as (I, O), as a `Conv1D` has it."""
    adapter: Adapter | None = None
    """What is added."""
    columns: Float[Tensor, " I"] | None = None
    """Factors of its columns."""
    rows: Float[Tensor, " O"] | None = None
    """Factors of its rows."""
    inputs: Int[Tensor, " C"] | None = None
    """Columns that are kept."""
    outputs: Int[Tensor, " R"] | None = None
    """Rows that are kept."""

    @property
    def changes(self) -> bool:
        """Whether its numbers change."""
        return not (self.adapter is None and self.columns is None and self.rows is None)

    def adapted(self, stored: Tensor) -> Float[Tensor, "O I"]:
        """A copy in float32 with the adapter added."""
        matrix = (stored.T if self.turned else stored).to(torch.float32, copy=True)
        if self.adapter is not None:
            matrix += self.adapter.added().to(stored.device)
        return matrix

    def changed(self, read: Read) -> Tensor:
        """All rows and columns with their new numbers, as the layer stores them."""
        stored = read(self.source)
        if not self.changes:
            return stored
        matrix = self.adapted(stored)
        if self.columns is not None:
            matrix *= self.columns.to(stored.device)
        if self.rows is not None:
            matrix *= self.rows.to(stored.device)[:, None]
        return (matrix.T if self.turned else matrix).contiguous().to(stored.dtype)

    def cut(self, whole: Tensor) -> Tensor:
        """The kept rows and columns of the weight as the layer stores it."""
        ends = (self.inputs, self.outputs) if self.turned else (self.outputs, self.inputs)
        for dim, kept in enumerate(ends):
            if kept is not None:
                whole = whole.index_select(dim, kept.to(whole.device))
        return whole


@dataclass(frozen=True)
class Bias:
    """The bias of a linear layer, (O); what is None changes nothing."""

    source: str
    """Its name in the dense model."""
    weight: Weight
    """That of its layer."""
    is_new: bool = False
    """Whether the dense model has none."""
    pruned_means: Float[Tensor, " I"] | None = None
    """Mean inputs of pruned columns of the weight, 0 at the others: what these would have added on
    average is added."""
    rows: Float[Tensor, " O"] | None = None
    """Factors of its entries."""
    outputs: Int[Tensor, " R"] | None = None
    """Entries that are kept."""

    @property
    def changes(self) -> bool:
        """Whether its numbers change."""
        return not (self.pruned_means is None and self.rows is None)

    def changed(self, read: Read) -> Tensor:
        """All entries with their new numbers."""
        if not self.changes:
            return read(self.source)
        bias = None if self.is_new else read(self.source)
        made, dtype = bias, None if bias is None else bias.dtype
        if self.pruned_means is not None:
            weight = read(self.weight.source)
            added = self.weight.adapted(weight) @ self.pruned_means.to(weight.device)
            made, dtype = added if made is None else made.float() + added, weight.dtype
        assert made is not None, f"{self.source} is new, and nothing is in it"
        made = made.float()
        if self.rows is not None:
            made = made * self.rows.to(made.device)
        return made.to(dtype)

    def cut(self, whole: Tensor) -> Tensor:
        """The kept entries."""
        kept = self.outputs
        return whole if kept is None else whole.index_select(0, kept.to(whole.device))


@dataclass(frozen=True)
class Picked:
    """A tensor with a slice or a number for each of the E experts of a mixture; its weights are
    packed into such."""

    source: str
    """Its name in the dense model."""
    picks: tuple[tuple[int, Tensor], ...]
    """Dimensions that are cut, one after the other, and what is kept of each: (K) for all experts,
    or (E, K) for each of those that the picks before have left."""
    factors: tuple[Tensor, ...] = ()
    """What it is multiplied by, of shapes that broadcast."""

    @property
    def changes(self) -> bool:
        """Whether its numbers change."""
        return bool(self.factors)

    def changed(self, read: Read) -> Tensor:
        """All of it with its new numbers."""
        stored = read(self.source)
        if not self.changes:
            return stored
        made = stored.to(torch.float32, copy=True)
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


@dataclass(frozen=True)
class Index:
    """A buffer that says which dimensions a branch reads or writes."""

    kept: Int[Tensor, " K"]


@dataclass(frozen=True)
class Taken:
    """A tensor that is taken as it is."""

    source: str
    """Its name in the dense model."""


Part = Weight | Bias | Picked | Index | Taken


def made(part: Part, read: Read) -> Tensor:
    """The tensor that a part describes."""
    if isinstance(part, Index):
        return part.kept
    if isinstance(part, Taken):
        return read(part.source)
    return part.cut(part.changed(read))
