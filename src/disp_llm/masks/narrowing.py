"""A masked model that computes some of its entries and leaves out the others.

What a mask has set to zero adds nothing to a forward pass, so layers without its rows and columns
give the same numbers in less time. The masks of what is left out have no gradient then, so a step
of learning computes what is kept and what is next to be kept.

N entries of all sites, K computed ones of one site, D residual stream, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.compact.modeling_disp_llm import is_conv1d, linear_at, widths_of
from disp_llm.masks.layout import STREAM_SITES, common_chunk
from disp_llm.masks.prunable import PrunableModel

COLUMNS, ROWS = "disp_columns", "disp_rows"
"""Attributes of a narrowed layer: indices of its inputs and of its outputs, or None for all."""

Computed = dict[str, Int[Tensor, " K"]]
"""Indices of the computed entries by the name of their site, such as `layers.3.attn_in`."""


@dataclass(frozen=True)
class Layer:
    """A linear layer, with the sites that its inputs and its outputs are entries of; "" = none."""

    linear: Any
    inputs: str
    outputs: str
    widths: tuple[int, int]
    """(inputs, outputs) of all of it."""
    fused: int = 1
    """How many projections of equal width it stacks."""

    @property
    def reads_stream(self) -> bool:
        """Whether its inputs are dimensions of the residual stream."""
        return self.inputs.endswith(STREAM_SITES)

    def part(self, computed: Computed) -> dict[str, Any]:
        """The attributes with which the layer has these rows and columns alone."""
        columns, rows = computed.get(self.inputs), computed.get(self.outputs)
        if rows is not None and self.fused > 1:
            width = self.widths[1] // self.fused
            rows = torch.cat([rows + width * k for k in range(self.fused)])
        weight, bias = self.linear._parameters["weight"].detach(), self.linear._parameters["bias"]
        turned = is_conv1d(self.linear)
        fewer = (  # a matrix that is computed whole is not copied
            None if indices is None or len(indices) == width else indices
            for indices, width in zip((columns, rows), self.widths, strict=True)
        )
        weight = kept_of_matrix(weight, turned, *fewer)
        if bias is not None and rows is not None:
            bias = bias.index_select(0, rows)
        part = {"weight": weight, "bias": bias, COLUMNS: columns, ROWS: rows}
        # A Conv1D shapes its output by a number of its own.
        return part | ({"nf": weight.shape[1]} if turned else {})

    def lay(self, part: dict[str, Any]) -> None:
        """Has the layer run with that part of it: past `nn.Module`, which keeps the whole."""
        self.linear.__dict__.update(part)

    def widen(self) -> None:
        """Has it run whole again."""
        for name in ("weight", "bias", COLUMNS, ROWS):
            self.linear.__dict__.pop(name, None)
        if is_conv1d(self.linear):
            self.linear.nf = self.widths[1]


def computed_of(linear: Any) -> tuple[Tensor | None, Tensor | None]:
    """Indices of the inputs and of the outputs that a layer computes; None for all of them."""
    return linear.__dict__.get(COLUMNS), linear.__dict__.get(ROWS)


def kept_of_matrix(
    stored: Tensor, turned: bool, inputs: Tensor | None, outputs: Tensor | None
) -> Tensor:
    """Some rows and columns of a weight as its layer stores it.

    Args:
        turned: whether it is stored as (inputs, outputs), as a `Conv1D` has it.
        inputs: indices of those that are kept; None = all.
        outputs: likewise.
    """
    first, last = (inputs, outputs) if turned else (outputs, inputs)
    if stored.stride(0) == 1 < stored.stride(1):  # by columns
        return _kept_of_rows(stored.T, last, first).T
    return _kept_of_rows(stored, first, last)


def _kept_of_rows(stored: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Some rows and columns of a matrix whose rows lie one after another in memory. Whole rows
    cost next to nothing, and so do columns in chunks; single ones are copied number by number."""
    if rows is not None:
        stored = stored.index_select(0, rows.to(stored.device))
    if columns is not None:
        kept = torch.zeros(stored.shape[1], dtype=torch.bool, device=columns.device)
        chunk = common_chunk([kept.index_fill(0, columns, True)])
        numbers = (columns[::chunk] // chunk).to(stored.device)
        stored = stored.unflatten(1, (-1, chunk)).index_select(1, numbers).flatten(1)
    return stored


def layers_of(target: PrunableModel) -> Iterator[Layer]:
    """Every layer that reads or writes the residual stream, but for those of mixtures of experts:
    there, and inside attention, everything is computed."""
    for i, block in enumerate(target.blocks):
        attention, mlp = target.branches_of(block)
        for branch, stream, inside in (
            (attention, "attn", ""),
            (mlp, "mlp", f"layers.{i}.mlp_mid"),
        ):
            if branch.experts:
                continue
            for path in branch.reads:
                linear = linear_at(block, path)
                reads = f"layers.{i}.{stream}_in"
                yield Layer(linear, reads, inside, widths_of(linear), branch.fused)
            linear = linear_at(block, branch.writes)
            yield Layer(linear, inside, f"layers.{i}.{stream}_out", widths_of(linear))


class Narrowing:
    """Which part of every layer runs."""

    def __init__(self, target: PrunableModel):
        self._layers = list(layers_of(target))
        self.sites = {site for one in self._layers for site in (one.inputs, one.outputs)}
        """Names of the sites whose entries can be left out, and ""."""
        self._layout = target.layout
        self._by_columns: list[Any] = []
        self._last: tuple[Tensor, Computed, list[dict[str, Any]]] | None = None
        self._narrow = False

    def set(self, computed: Bool[Tensor, " N"] | None) -> Computed:
        """Has the layers run with these entries alone, or whole; indices by site."""
        if computed is None:
            for layer in self._layers if self._narrow else ():
                layer.widen()
            self._narrow = False
            return {}
        self._narrow = True
        if not self._by_columns:
            self._lay_by_columns()
        if self._last is None or self._last[0] is not computed:
            parts = zip(self._layout.names, self._layout.split(computed), strict=True)
            indices = {
                name: part.nonzero().squeeze(-1) for name, part in parts if name in self.sites
            }
            self._last = computed, indices, [layer.part(indices) for layer in self._layers]
        _, indices, laid = self._last
        for layer, part in zip(self._layers, laid, strict=True):
            layer.lay(part)
        return indices

    def _lay_by_columns(self) -> None:
        """Has memory hold the weights of what writes column by column where single columns of them
        are left out, which is twenty times as fast as by rows (docs/experiment-log.md)."""
        inside = [one for one in self._layers if one.inputs and not one.reads_stream]
        self._by_columns = [one.linear for one in inside if not is_conv1d(one.linear)]
        for linear in self._by_columns:
            weight = linear._parameters["weight"]
            weight.data = weight.data.T.contiguous().T

    def close(self) -> None:
        """Leaves the layers as they were found."""
        self.set(None)
        for linear in self._by_columns:
            linear.weight.data = linear.weight.data.contiguous()
        self._by_columns = []


class _Gather(torch.autograd.Function):
    """`hidden[..., indices]`; indices differ, so that its gradient is a copy and no sum."""

    @staticmethod
    def forward(ctx, hidden: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.width = hidden.shape[-1]
        return hidden.index_select(-1, indices)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return _spread(gradients[0], indices, ctx.width), None


class _Scatter(torch.autograd.Function):
    """Zeros of a width with `hidden` at `indices`."""

    @staticmethod
    def forward(ctx, hidden: Tensor, indices: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(indices)
        return _spread(hidden, indices, width)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gradients[0].index_select(-1, indices), None, None


def _spread(hidden: Tensor, indices: Tensor, width: int) -> Tensor:
    return hidden.new_zeros(*hidden.shape[:-1], width).index_copy(-1, indices, hidden)


def gather(hidden: Float[Tensor, "*T D"], indices: Int[Tensor, " K"]) -> Float[Tensor, "*T K"]:
    """The computed entries."""
    return _Gather.apply(hidden, indices)


def scatter(hidden: Float[Tensor, "*T K"], indices: Int[Tensor, " K"], width: int) -> Tensor:
    """All entries, zero where they are not computed; (…, width)."""
    return _Scatter.apply(hidden, indices, width)
