"""What masks cost, and the masks that a budget allows.

`Budget` counts parameters and FLOPs from the number of ones of each site; `project` turns scores
into the masks with the best scores that stay within a budget, exactly, with aligned widths.

N entries of all sites, S sites (5 a block), L blocks, G groups of `align` entries of one site.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config import InputError
from disp_llm.masks import SITES, Layout


@dataclass(frozen=True)
class Budget:
    """Counting of block parameters: the weights of the linear layers inside the blocks."""

    layout: Layout

    @cached_property
    def _table(self) -> Float[Tensor, "L 3"]:
        rows = [(block.qkv, block.q, block.pieces) for block in self.layout.blocks]
        return torch.tensor(rows, dtype=torch.float64)

    def block_parameters(self, counts: Tensor) -> Tensor:
        """T(s), from the ones of each of the S sites; exact in float64 and differentiable.

        `|S1|·(q + 2kv) + |S2|·q + pieces·|S3|·|S4| + |S4|·|S5|`, summed over blocks.
        """
        s1, s2, s3, s4, s5 = counts.double().view(-1, len(SITES)).unbind(-1)
        qkv, q, pieces = self._table.to(counts.device).unbind(-1)
        return (s1 * qkv + s2 * q + pieces * s3 * s4 + s4 * s5).sum()

    @cached_property
    def full(self) -> int:
        """T, block parameters of the dense model."""
        return int(self.block_parameters(torch.tensor(self.layout.lengths)))

    def keep(self, counts: Tensor) -> Tensor:
        """T(s)/T."""
        return self.block_parameters(counts) / self.full

    def removed_parameters(self, counts: Int[Tensor, " S"]) -> int:
        """How many parameters less the cut model has, biases included."""
        lengths = torch.tensor(self.layout.lengths)
        biases = torch.tensor([block.biases for block in self.layout.blocks]).flatten()
        weights = self.full - int(self.block_parameters(counts))
        return weights + int(((lengths - counts.cpu()) * biases).sum())

    def flops_per_token(self, counts: Tensor) -> int:
        """Floating-point operations of the block linears for one token, two a weight."""
        return 2 * int(self.block_parameters(counts))

    @cached_property
    def entry_costs(self) -> Float[Tensor, " N"]:
        """c_i: block parameters that removing one entry of the dense model saves."""
        costs = []
        for block in self.layout.blocks:
            d, f, pieces = block.hidden, block.intermediate, block.pieces
            per_entry = (block.qkv, block.q, pieces * f, (pieces + 1) * d, f)
            costs += [
                torch.full((n,), float(c)) for n, c in zip(block.lengths, per_entry, strict=True)
            ]
        return torch.cat(costs)


@dataclass(frozen=True)
class Projected:
    """The masks of a budget."""

    kept: Bool[Tensor, " N"]
    threshold: float
    """The score between the last kept and the first dropped group."""


def project(scores: Float[Tensor, " N"], budget: Budget, keep: float, align: int = 1) -> Projected:
    """The highest-scoring entries whose block parameters are at most `keep` of the dense ones.

    Entries of a site are ranked and taken in groups of `align`; a group counts with its mean score.
    One threshold holds for all sites, found by bisection over the ranked groups, so that ties break
    by position and the waste is less than the next group. Every site keeps its best group.

    Raises:
        InputError: even the best group of every site is more than the budget.
    """
    layout = budget.layout
    allowed = keep * budget.full
    site = layout.site_of_entry.to(scores.device)
    ranked = torch.argsort(scores, descending=True, stable=True)
    ranked = ranked[torch.argsort(site[ranked], stable=True)]  # by site, best first within a site
    group, sizes, group_site, first = _groups(layout, align, scores.device)
    means = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device)
    means = means.index_add(0, group, scores.detach()[ranked].double()) / sizes
    order = torch.argsort(means.masked_fill(first, torch.inf), descending=True, stable=True)

    site_in_order, size_in_order = group_site[order], sizes[order].double()

    def cost(groups: int) -> float:
        counts = size_in_order.new_zeros(len(layout.lengths))
        counts = counts.index_add(0, site_in_order[:groups], size_in_order[:groups])
        return float(budget.block_parameters(counts))

    low, high = len(layout.lengths), len(order)  # cost(low) fits, everything above high does not
    if cost(low) > allowed:
        raise InputError(
            f"{keep} is less than the smallest model, {cost(low) / budget.full:.2g}",
            flag="--keep",
            mend="ask for more, or for a smaller --align",
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle - 1)
    kept_group = torch.zeros(len(order), dtype=torch.bool, device=scores.device)
    kept_group[order[:low]] = True
    kept = torch.zeros(layout.entries, dtype=torch.bool, device=scores.device)
    kept[ranked] = kept_group[group]
    last = means[order[low - 1]]
    following = means[order[low]] if low < len(order) else last - 1e-3
    return Projected(kept, float((last + following) / 2))


def _groups(
    layout: Layout, align: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For entries laid out by site: the group of each, and each group's size, site, being first.

    The last group of a site is smaller where `align` does not divide its length.
    """
    group, sizes, sites, first = [], [], [], []
    for index, length in enumerate(layout.lengths):
        count = -(-length // align)
        group.append(torch.arange(length) // align + sum(len(part) for part in sizes))
        sizes.append(torch.full((count,), align).clamp(max=length))
        sizes[-1][-1] = length - align * (count - 1)
        sites.append(torch.full((count,), index))
        first.append(torch.arange(count) == 0)
    joined = [torch.cat(parts).to(device) for parts in (group, sizes, sites, first)]
    return joined[0], joined[1], joined[2], joined[3]
