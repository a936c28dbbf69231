"""Groups of entries that are kept or pruned together, and how many of the best have room.

A group is `align` entries of one site, of each of its lanes, and of each of the blocks that are to
be alike. It consists of pieces, each of one site; most groups are one piece.

N entries of all sites, S sites, G groups, P pieces.
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
    """For entries laid out lane by lane, the group of each, and the groups' pieces."""

    of_entry: Int[Tensor, " N"]
    is_first: Bool[Tensor, " G"]
    """Whether it is the first of its site."""
    piece_group: Int[Tensor, " P"]
    piece_site: Int[Tensor, " P"]
    piece_size: Float[Tensor, " P"]
    sites: int
    """S."""

    def means(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " G"]:
        """The mean score of each group, in float64."""
        sums = scores.new_zeros(len(self.is_first), dtype=torch.float64)
        sizes = torch.zeros_like(sums).index_add(0, self.piece_group, self.piece_size)
        return sums.index_add(0, self.of_entry, scores.double()) / sizes

    def of_sites(self, chosen: Bool[Tensor, " S"]) -> Bool[Tensor, " G"]:
        """Which groups have a piece of a chosen site."""
        pieces = chosen.to(self.piece_site.device)[self.piece_site]
        return torch.zeros_like(self.is_first).index_fill(0, self.piece_group[pieces], True)

    def counts(self, pieces: Tensor | slice) -> Float[Tensor, " S"]:
        """How many entries of each site some pieces have."""
        counts = self.piece_size.new_zeros(self.sites)
        return counts.index_add(0, self.piece_site[pieces], self.piece_size[pieces]).cpu()


Fits = Callable[[Float[Tensor, " S"]], bool]
"""Whether so many entries of each site have room."""


@dataclass(frozen=True)
class Ranking:
    """Groups in an order, and their pieces in the same."""

    groups: Groups
    order: Int[Tensor, " G"]
    pieces: Int[Tensor, " P"]
    ends: Int[Tensor, " G"]
    """Where the pieces of each group in the order end."""

    @classmethod
    def of(cls, groups: Groups, order: Int[Tensor, " G"]) -> "Ranking":
        """The groups in that order."""
        ends = torch.arange(1, len(order) + 1, device=order.device)
        pieces = order
        if len(groups.piece_group) > len(order):
            rank = torch.empty_like(order).index_copy(0, order, ends - 1)[groups.piece_group]
            ends = torch.bincount(rank, minlength=len(order)).cumsum(0)
            pieces = torch.argsort(rank, stable=True)
        return cls(groups, order, pieces, ends)

    def counts(self, first: int) -> Float[Tensor, " S"]:
        """How many entries of each site the first groups have."""
        return self.groups.counts(self.pieces[: int(self.ends[first - 1])])

    def longest(self, fits: Fits, low: int, high: int) -> int:
        """How many of the first groups have room, from `low`, which do, to `high`: by bisection."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(self.counts(middle)) else (low, middle - 1)
        return low

    def site_of(self, place: int) -> int:
        """The site of the group at a place; of several sites, of its last piece."""
        return int(self.groups.piece_site[self.pieces[self.ends[place] - 1]])

    def with_last(self, place: int) -> "Ranking":
        """The group at a place goes to the end."""
        parts = self.order[:place], self.order[place + 1 :], self.order[place : place + 1]
        return Ranking.of(self.groups, torch.cat(parts))


def fill(
    ranking: Ranking,
    least: int,
    fits: Fits,
    may_be_passed_over: Bool[Tensor, " S"],
) -> tuple[Int[Tensor, " G"], int]:
    """All groups, best first, and how many of them have room.

    Args:
        least: so many of the first groups have room in any case.
        may_be_passed_over: sites whose entries are so large that what follows may fit without them.
    """
    low, high = least, len(ranking.order)
    while True:
        low = ranking.longest(fits, low, high)
        if low == high or not may_be_passed_over[ranking.site_of(low)]:
            return ranking.order, low
        ranking, high = ranking.with_last(low), high - 1


@lru_cache(maxsize=4)  # the same at every step of a run
def groups_of(
    layout: Layout, align: int, chunk: int, alike: tuple[str, ...], device: torch.device
) -> Groups:
    """The groups of a layout. The last of a site is smaller where `align` does not divide its
    length; none divides a chunk.

    Args:
        alike: sites that keep as many in all blocks.
    """
    of_entry, sizes, piece_group, piece_site, is_first = [], [], [], [], []
    begins: dict[object, int] = {}  # the first group of each site
    places = [(block, i, site) for block in layout.blocks for i, site in enumerate(layout.sites)]
    for index, (block, place, site) in enumerate(places):
        lanes = block.lanes[place]
        width = block.lengths[place] // lanes
        times = _times_as_wide(layout, block) if site == "mlp_mid" and site in alike else 1
        size = group_size(site, align, chunk) * times
        count = -(-width // size)
        key: object = index
        if site in alike:
            of_mixture = block.router and site != HEADS  # attentions are alike in all blocks
            key = (site, of_mixture, width // times)
        if key not in begins:
            begins[key] = sum(map(len, is_first))
            is_first.append(torch.arange(count) < -(-block.least[place] // size))
        groups = torch.arange(count) + begins[key]
        of_entry.append(groups.repeat_interleave(size)[:width].repeat(lanes))
        sizes.append(torch.full((count,), size * lanes))
        sizes[-1][-1] = (width - size * (count - 1)) * lanes
        piece_group.append(groups)
        piece_site.append(torch.full((count,), index))
    parts = of_entry, is_first, piece_group, piece_site, sizes
    entries, first, groups, site, size = (torch.cat(part).to(device) for part in parts)
    return Groups(entries, first, groups, site, size.double(), len(layout.lengths))


def _times_as_wide(layout: Layout, block: BlockShape) -> int:
    """How many times as wide as the narrowest the dense MLP of a block is; 1 where that is no whole
    number, or where it has a mixture in its place."""
    widths = [one.intermediate for one in layout.blocks if not one.router]
    if block.router or block.intermediate % min(widths):
        return 1
    return block.intermediate // min(widths)
