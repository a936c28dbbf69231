"""Groups of entries that are kept or pruned together, and how many of the best have room.

A group is `align` entries of one site, of each of its lanes, and of each of the blocks that are to
be alike.

N entries of all sites, S sites, G groups, P pieces of them, each of one site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.names import HEADS
from disp_llm.masks.layout import Layout, group_size
from disp_llm.masks.shapes import BlockShape


@dataclass(frozen=True)
class Groups:
    """For entries laid out lane by lane, the group of each."""

    sites: int
    """S."""
    of_entry: Int[Tensor, " N"]
    is_first: Bool[Tensor, " G"]
    """Whether it is of the fewest entries that its site keeps."""
    piece_group: Int[Tensor, " P"]
    """A group with entries of several sites, as of blocks that are alike, has a piece of each."""
    piece_site: Int[Tensor, " P"]
    piece_size: Float[Tensor, " P"]

    def means(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " G"]:
        """The mean score of each group, in float64."""
        sums = scores.new_zeros(len(self.is_first), dtype=torch.float64)
        return sums.index_add(0, self.of_entry, scores.double()) / self.of_entry.bincount()

    def of_sites(self, chosen: Bool[Tensor, " S"]) -> Bool[Tensor, " G"]:
        """Which groups have entries of a chosen site."""
        pieces = chosen.to(self.piece_site.device)[self.piece_site]
        return torch.zeros_like(self.is_first).index_fill(0, self.piece_group[pieces], True)

    def counts(self, chosen: Bool[Tensor, " G"]) -> Float[Tensor, " S"]:
        """How many entries of each site the chosen groups have."""
        sizes = self.piece_size * chosen[self.piece_group]
        return sizes.new_zeros(self.sites).index_add(0, self.piece_site, sizes).cpu()

    def first(self, order: Int[Tensor, " G"], count: int) -> Bool[Tensor, " G"]:
        """Which groups are the first in an order."""
        return torch.zeros_like(self.is_first).index_fill(0, order[:count], True)


def fill(
    groups: Groups,
    order: Int[Tensor, " G"],
    least: int,
    fits: Callable[[Float[Tensor, " S"]], bool],
    may_be_passed_over: Bool[Tensor, " S"],
) -> tuple[Int[Tensor, " G"], int]:
    """All groups, best first, and how many of them have room.

    Args:
        order: of the groups, best first.
        least: so many of the first groups have room in any case.
        fits: whether so many entries of each site have room.
        may_be_passed_over: sites whose entries are so large that what follows may fit without them.
    """
    count, end = least, len(order)
    while True:
        high = end
        while count < high:  # by bisection
            middle = (count + high + 1) // 2
            if fits(groups.counts(groups.first(order, middle))):
                count = middle
            else:
                high = middle - 1
        if count == end:
            return order, count
        site = groups.piece_site[groups.piece_group == order[count]][-1]
        if not may_be_passed_over[site]:
            return order, count
        rest = order[count:end]  # all groups of that site are as large
        over = groups.of_sites(torch.arange(groups.sites) == site.cpu())[rest]
        order = torch.cat([order[:count], rest[~over], order[end:], rest[over]])
        end -= int(over.sum())


@lru_cache(maxsize=4)  # the same at every step of a run
def groups_of(
    layout: Layout, align: int, chunk: int, alike: tuple[str, ...], device: torch.device
) -> Groups:
    """The groups of a layout. The last of a site is smaller where `align` does not divide its
    length; none divides a chunk.

    Args:
        alike: sites that keep as many in all blocks.
    """
    of_entry, is_first = [], []
    begins: dict[object, int] = {}  # the first group of each site
    places = [(block, i, site) for block in layout.blocks for i, site in enumerate(layout.sites)]
    for index, (block, place, site) in enumerate(places):
        lanes = block.lanes[place]
        width = block.lengths[place] // lanes
        times = _times_as_wide(layout, block) if site == "mlp_mid" and site in alike else 1
        size = group_size(site, align, chunk) * times
        key: object = index
        if site in alike:
            of_mixture = block.experts > 1 and site != HEADS  # attentions are alike in all blocks
            key = (site, of_mixture, width // times)
        if key not in begins:
            begins[key] = sum(map(len, is_first))
            is_first.append(torch.arange(-(-width // size)) < -(-block.least[place] // size))
        of_entry.append((begins[key] + torch.arange(width) // size).repeat(lanes))
    of_entries, sites = torch.cat(of_entry), len(layout.lengths)
    pairs = of_entries * sites + layout.site_of_entry
    pieces, sizes = pairs.unique(return_counts=True)
    parts = of_entries, torch.cat(is_first), pieces // sites, pieces % sites, sizes.double()
    return Groups(sites, *(part.to(device) for part in parts))


def _times_as_wide(layout: Layout, block: BlockShape) -> int:
    """How many times as wide as the narrowest the dense MLP of a block is; 1 where that is no whole
    number, or where it has a mixture in its place."""
    widths = [one.intermediate for one in layout.blocks if one.experts == 1]
    if block.experts > 1 or block.intermediate % min(widths):
        return 1
    return block.intermediate // min(widths)
