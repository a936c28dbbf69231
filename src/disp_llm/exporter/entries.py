"""Splits numbers of all entries by branch, and lays them out as the branch's layers are.

N entries of all sites, D residual stream, H heads, F intermediate, E experts, M inputs of a layer
that writes, W inputs or outputs of any linear layer, K kept of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from disp_llm.config.names import ATTENTION, EXPERTS, HEADS, MLP
from disp_llm.masks.layout import Layout
from disp_llm.masks.selection import Masks


@dataclass(frozen=True)
class Entries:
    """Numbers (masks or scales) of one branch's entries; None for what is no site of the layout."""

    incoming: Shaped[Tensor, " D"]
    """Entries of attn_in or mlp_in."""
    outgoing: Shaped[Tensor, " D"]
    """Entries of attn_out or mlp_out."""
    heads: Shaped[Tensor, " H"] | None = None
    """Heads of the attention."""
    middle: Shaped[Tensor, " F"] | None = None
    """Entries of mlp_mid; in a mixture, expert by expert."""
    experts: Shaped[Tensor, " E"] | None = None
    """Whole experts."""
    whole: Shaped[Tensor, " 1"] | None = None
    """The branch itself."""

    def inside(self, *widths: int) -> Shaped[Tensor, " W"] | None:
        """Returns the numbers of heads or intermediate dimensions, laid out as a linear layer's
        inputs or outputs; None if all stay. Attention layers lay out each range (such as queries),
        of one width each, head by head; an MLP layer repeats the numbers per fused projection."""
        if self.heads is not None:
            heads = [self.heads.repeat_interleave(one // len(self.heads)) for one in widths]
            return torch.cat(heads)
        width = sum(widths)
        return None if self.middle is None else self.middle.repeat(width // len(self.middle))

    @property
    def rows(self) -> Shaped[Tensor, " D"]:
        """Factors of the rows of the layer that writes to the residual stream."""
        return self.outgoing if self.whole is None else self.outgoing * self.whole


def entries_of(layout: Layout, flat: Shaped[Tensor, " N"]) -> Iterator[Entries]:
    """Yields the entries of the attention and of the MLP, block by block."""
    parts = iter(layout.split(flat))
    for _ in layout.blocks:
        at = {site: next(parts) for site in layout.sites}
        heads, attention, mlp = (at.get(site) for site in (HEADS, ATTENTION, MLP))
        experts = at.get(EXPERTS)
        yield Entries(at["attn_in"], at["attn_out"], heads=heads, whole=attention)
        yield Entries(at["mlp_in"], at["mlp_out"], None, at["mlp_mid"], experts, mlp)


def scales_of(masks: Masks) -> Iterator[Entries]:
    """Yields scales as `entries_of` does, 1 for pruned entries; yields nothing without scales."""
    scales = masks.compensation.scales
    if scales is None:
        return iter(())
    return entries_of(masks.layout, torch.where(masks.kept, scales.cpu(), 1.0))


def mean_inputs_of(masks: Masks) -> Iterator[Tensor]:
    """Yields the mean inputs (M) of the attention's and the MLP's writing layer, block by block;
    nothing if the selection has none."""
    means = masks.compensation.mean_inputs
    widths = [width for block in masks.layout.blocks for width in (block.q, block.intermediate)]
    return iter(() if means is None else means.split(widths))


def kept_of(*masks: tuple[int, Bool[Tensor, " _"] | None]) -> tuple[tuple[int, Tensor], ...]:
    """Returns (dimension, kept indices) for every dimension that has a mask."""
    return tuple((dim, where(mask)) for dim, mask in masks if mask is not None)


def where(mask: Bool[Tensor, " W"]) -> Int[Tensor, " K"]:
    """Indices that a mask keeps."""
    return mask.nonzero().squeeze(-1)
