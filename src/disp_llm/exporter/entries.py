"""Numbers of all entries -> those of each branch, laid out as its layers are.

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
    """Numbers of the entries of one branch; None where that is no site of the layout."""

    incoming: Shaped[Tensor, " D"]
    """Of attn_in or mlp_in."""
    outgoing: Shaped[Tensor, " D"]
    """Of attn_out or mlp_out."""
    heads: Shaped[Tensor, " H"] | None = None
    """Of attention's heads."""
    middle: Shaped[Tensor, " F"] | None = None
    """Of mlp_mid; of a mixture expert by expert."""
    experts: Shaped[Tensor, " E"] | None = None
    """Of whole experts."""
    whole: Shaped[Tensor, " 1"] | None = None
    """Of the branch itself."""

    def inside(self, *widths: int) -> Shaped[Tensor, " W"] | None:
        """The numbers of what lies between reading and writing, laid out as the inputs or outputs
        of a linear layer are: each range of such a width head by head, or each fused projection
        after the other."""
        if self.heads is not None:
            heads = [self.heads.repeat_interleave(one // len(self.heads)) for one in widths]
            return torch.cat(heads)
        width = sum(widths)
        return None if self.middle is None else self.middle.repeat(width // len(self.middle))

    @property
    def rows(self) -> Shaped[Tensor, " D"]:
        """Factors of the rows of the layer that writes."""
        return self.outgoing if self.whole is None else self.outgoing * self.whole


def entries_of(layout: Layout, flat: Shaped[Tensor, " N"]) -> Iterator[Entries]:
    """Numbers of all entries, block by block those of attention and of the MLP."""
    parts = iter(layout.split(flat))
    for _ in layout.blocks:
        at = {site: next(parts) for site in layout.sites}
        heads, attention, mlp = (at.get(site) for site in (HEADS, ATTENTION, MLP))
        experts = at.get(EXPERTS)
        yield Entries(at["attn_in"], at["attn_out"], heads=heads, whole=attention)
        yield Entries(at["mlp_in"], at["mlp_out"], None, at["mlp_mid"], experts, mlp)


def scales_of(masks: Masks) -> Iterator[Entries]:
    """Factors of all entries, likewise; a pruned one has 1. None at all without scales."""
    scales = masks.compensation.scales
    if scales is None:
        return iter(())
    return entries_of(masks.layout, torch.where(masks.kept, scales.cpu(), 1.0))


def mean_inputs_of(masks: Masks) -> Iterator[Tensor]:
    """Mean inputs of the layers that write, block by block attention's and the MLP's, (M) each;
    none where the selection has none."""
    means = masks.compensation.mean_inputs
    widths = [width for block in masks.layout.blocks for width in (block.q, block.intermediate)]
    return iter(() if means is None else means.split(widths))


def kept_of(*masks: tuple[int, Bool[Tensor, " _"] | None]) -> tuple[tuple[int, Tensor], ...]:
    """What is kept of the dimensions that have a mask."""
    return tuple((dim, where(mask)) for dim, mask in masks if mask is not None)


def where(mask: Bool[Tensor, " W"]) -> Int[Tensor, " K"]:
    """Indices of what is kept."""
    return mask.nonzero().squeeze(-1)
