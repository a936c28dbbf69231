"""Groups of entries that are kept or pruned together, and how many of the best groups fit.

A group holds `align` entries of one site, from each of its lanes and from each block that must keep
the same width.

N entries of all sites, S sites, G groups, P pieces (a group's part in one site).
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
    """The group of each entry; entries are laid out lane by lane."""

    sites: int
    """S."""
    of_entry: Int[Tensor, " N"]
    is_first: Bool[Tensor, " G"]
    """Whether the group belongs to the minimum that its site always keeps."""
    piece_group: Int[Tensor, " P"]
    """Group of each piece; a group over several sites (blocks kept alike) has a piece in each."""
    piece_site: Int[Tensor, " P"]
    piece_size: Float[Tensor, " P"]

    def means(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " G"]:
        """Returns the mean score of each group, in float64."""
        sums = scores.new_zeros(len(self.is_first), dtype=torch.float64)
        return sums.index_add(0, self.of_entry, scores.double()) / self.of_entry.bincount()

    def of_sites(self, chosen: Bool[Tensor, " S"]) -> Bool[Tensor, " G"]:
        """Marks the groups with entries in a chosen site."""
        pieces = chosen.to(self.piece_site.device)[self.piece_site]
        return torch.zeros_like(self.is_first).index_fill(0, self.piece_group[pieces], True)

    def counts(self, chosen: Bool[Tensor, " G"]) -> Float[Tensor, " S"]:
        """Returns how many entries of each site the chosen groups hold."""
        sizes = self.piece_size * chosen[self.piece_group]
        return sizes.new_zeros(self.sites).index_add(0, self.piece_site, sizes).cpu()

    def first(self, order: Int[Tensor, " G"], count: int) -> Bool[Tensor, " G"]:
        """Marks the first `count` groups of an order."""
        return torch.zeros_like(self.is_first).index_fill(0, order[:count], True)


def fill(
    groups: Groups,
    order: Int[Tensor, " G"],
    least: int,
    fits: Callable[[Float[Tensor, " S"]], bool],
    may_be_passed_over: Bool[Tensor, " S"],
) -> tuple[Int[Tensor, " G"], int]:
    """Returns all groups, best first and skipped ones last, and how many of them fit.

    Args:
        order: the groups, best first.
        least: number of leading groups that are kept without a check.
        fits: whether the given number of entries of each site fits.
        may_be_passed_over: sites with entries so large that later groups may fit without them.
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
        rest = order[count:end]  # all groups of that site are equally large
        over = groups.of_sites(torch.arange(groups.sites) == site.cpu())[rest]
        order = torch.cat([order[:count], rest[~over], order[end:], rest[over]])
        end -= int(over.sum())


@lru_cache(maxsize=4)  # the same at every step of a run
def groups_of(
    layout: Layout, align: int, chunk: int, alike: tuple[str, ...], device: torch.device
) -> Groups:
    """Returns the groups of a layout. The last group of a site is smaller if `align` does not
    divide the site's length. No group splits a chunk.

    Args:
        alike: sites that keep the same number of entries in all blocks.
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
            of_mixture = block.experts > 1 and site != HEADS  # attention is alike in all blocks
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
    """Returns the width of a block's dense MLP as a multiple of the narrowest; 1 if it is no whole
    multiple or the block has a mixture instead."""
    widths = [one.intermediate for one in layout.blocks if one.experts == 1]
    if block.experts > 1 or block.intermediate % min(widths):
        return 1
    return block.intermediate // min(widths)
