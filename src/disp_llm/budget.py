"""What masks cost, and the masks that a budget allows.

`Budget` counts parameters, FLOPs, bytes or milliseconds from the number of ones of each site: all
are one formula with prices of their own. `project` turns scores into the masks with the best scores
that stay within a share of the dense model's cost, exactly, with aligned widths.

N entries of all sites, S sites (5 a block, 6 with heads), L blocks, G groups of `align` entries of
one site.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config import HEADS, SITES, InputError
from disp_llm.masks import Layout


@dataclass(frozen=True)
class Prices:
    """What widths cost: `fixed + Σ_blocks own·|S| + attention·(|S1|, |S2|)·(share of heads that
    stays) + read·|S3|·|S4| + write·|S4|·|S5|`."""

    fixed: float
    own: Float[Tensor, "L K"]
    """Of one entry of each of the K sites of a block, whatever else stays."""
    attention: Float[Tensor, "L 2"]
    """Of one entry of attn_in and of attn_out, where all heads stay."""
    read: Float[Tensor, " L"]
    """Of one pair of an mlp_in and an mlp_mid entry."""
    write: Float[Tensor, " L"]
    """Of one pair of an mlp_mid and an mlp_out entry."""
    heads: Float[Tensor, " L"]
    """How many KV heads there are, where they are a site."""
    whole: float = 0.0
    """Of the dense model, of which a budget is a share."""

    def cost(self, counts: Tensor) -> Tensor:
        """From the ones of each of the S sites; exact in float64 and differentiable."""
        widths = counts.double().view(len(self.read), -1)
        own, attention, read, write, heads = (
            t.to(counts.device)
            for t in (self.own, self.attention, self.read, self.write, self.heads)
        )
        s3, s4, s5 = widths[:, 2:5].unbind(-1)
        stays = widths[:, 5:] / heads[:, None] if widths.shape[1] > 5 else 1.0
        in_attention = (attention * widths[:, :2] * stays).sum()
        in_mlp = (read * s3 * s4 + write * s4 * s5).sum()
        return self.fixed + (own * widths).sum() + in_attention + in_mlp


def parameter_prices(layout: Layout) -> Prices:
    """Block parameters: the weights of the linear layers inside the blocks."""

    def of_blocks(numbers: list) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    prices = Prices(
        fixed=0.0,
        own=torch.zeros(len(layout.blocks), len(layout.sites), dtype=torch.float64),
        attention=of_blocks([(block.qkv, block.q) for block in layout.blocks]),
        read=of_blocks([block.pieces for block in layout.blocks]),
        write=of_blocks([1.0] * len(layout.blocks)),
        heads=of_blocks([block.heads for block in layout.blocks]),
    )
    return replace(prices, whole=float(prices.cost(torch.tensor(layout.lengths))))


def _times(factor: float, prices: Prices) -> Prices:
    names = ("fixed", "own", "attention", "read", "write", "whole")
    return replace(prices, **{name: factor * getattr(prices, name) for name in names})


def flop_prices(layout: Layout, head_parameters: int) -> Prices:
    """Floating-point operations for one token, two a weight, of the linear layers of the blocks and
    of the head; attention itself, which depends on the length and is not pruned, is left out."""
    weights = parameter_prices(layout)
    both = replace(weights, fixed=float(head_parameters), whole=weights.whole + head_parameters)
    return _times(2.0, both)


def byte_prices(layout: Layout, parameters: int, itemsize: int) -> Prices:
    """Bytes of all weights of the model, biases, embeddings and head included."""
    weights = parameter_prices(layout)
    biases = torch.tensor([block.biases for block in layout.blocks], dtype=torch.float64)
    in_blocks = weights.whole + float((biases.flatten() * torch.tensor(layout.lengths)).sum())
    whole = replace(weights, fixed=parameters - in_blocks, own=biases, whole=float(parameters))
    return _times(float(itemsize), whole)


@dataclass(frozen=True)
class Budget:
    """What is counted, and what is held: block parameters unless other prices are given."""

    layout: Layout
    prices: Prices | None = None
    sites: tuple[str, ...] = SITES
    """Where entries may go; the other sites stay whole."""

    @cached_property
    def whole_sites(self) -> Bool[Tensor, " S"]:
        """Which sites stay whole."""
        stays = torch.tensor([site not in self.sites for site in self.layout.sites])
        return stays.repeat(len(self.layout.blocks))

    @cached_property
    def fixed(self) -> Bool[Tensor, " N"]:
        """Entries that stay in any case: those of sites that stay whole."""
        return self.whole_sites[self.layout.site_of_entry]

    @cached_property
    def _parameters(self) -> Prices:
        return parameter_prices(self.layout)

    @cached_property
    def _held(self) -> Prices:
        return self.prices or self._parameters

    @property
    def flag(self) -> str:
        """Where the user states the share."""
        return "--keep" if self.prices is None else "--target"

    def cost(self, counts: Tensor) -> Tensor:
        """Of what is held."""
        return self._held.cost(counts)

    @property
    def whole(self) -> float:
        """What the dense model costs of what is held."""
        return self._held.whole

    def share(self, counts: Tensor) -> Tensor:
        """Of what is held, relative to the dense model."""
        return self.cost(counts) / self.whole

    def block_parameters(self, counts: Tensor) -> Tensor:
        """T(s), from the ones of each of the S sites; exact in float64 and differentiable.

        `|S1|·(q + 2kv) + |S2|·q + pieces·|S3|·|S4| + |S4|·|S5|`, summed over blocks; q and kv
        shrink with the heads, where these are a site.
        """
        return self._parameters.cost(counts)

    @cached_property
    def full(self) -> int:
        """T, block parameters of the dense model."""
        return int(self._parameters.whole)

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
        """c_i: how much of what is held removing one entry of the dense model saves.

        At least a millionth of the dearest: a price that was measured as nothing must not make an
        entry infinitely worth keeping.
        """
        lengths = torch.tensor(self.layout.lengths, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (of_site,) = torch.autograd.grad(self.cost(lengths), lengths)
        return of_site.clamp(min=1e-6 * of_site.max())[self.layout.site_of_entry].float()


@dataclass(frozen=True)
class Projected:
    """The masks of a budget."""

    kept: Bool[Tensor, " N"]
    threshold: float
    """The score between the last kept and the first dropped group."""


def project(scores: Float[Tensor, " N"], budget: Budget, share: float, align: int = 1) -> Projected:
    """The highest-scoring entries whose cost is at most `share` of the dense model's.

    Entries of a site are ranked and taken in groups of `align`; a group counts with its mean score.
    One threshold holds for all sites, found by bisection over the ranked groups, so that ties break
    by position and the waste is less than the next group. Every site keeps its best group, and one
    that the budget leaves alone keeps all.

    Raises:
        InputError: even the best group of every site is more than the budget.
    """
    layout = budget.layout
    allowed = share * budget.whole
    site = layout.site_of_entry.to(scores.device)
    ranked = torch.argsort(scores, descending=True, stable=True)
    ranked = ranked[torch.argsort(site[ranked], stable=True)]  # by site, best first within a site
    group, sizes, group_site, first = _groups(layout, align, scores.device)
    means = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device)
    means = means.index_add(0, group, scores.detach()[ranked].double()) / sizes
    stays = first | budget.whole_sites.to(first.device)[group_site]
    order = torch.argsort(means.masked_fill(stays, torch.inf), descending=True, stable=True)

    site_in_order, size_in_order = group_site[order], sizes[order].double()

    def cost(groups: int) -> float:
        counts = size_in_order.new_zeros(len(layout.lengths))
        counts = counts.index_add(0, site_in_order[:groups], size_in_order[:groups])
        return float(budget.cost(counts))

    low, high = int(stays.sum()), len(order)  # cost(low) fits, everything above high does not
    if cost(low) > allowed:
        raise InputError(
            f"{share} is less than the smallest model, {cost(low) / budget.whole:.2g}",
            flag=budget.flag,
            mend="ask for more, for a smaller --align, or for more --sites",
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


@lru_cache(maxsize=4)  # the same at every step of a run
def _groups(
    layout: Layout, align: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For entries laid out by site: the group of each, and each group's size, site, being first.

    The last group of a site is smaller where `align` does not divide its length.
    """
    group, sizes, sites, first = [], [], [], []
    for index, length in enumerate(layout.lengths):
        of = 1 if layout.sites[index % len(layout.sites)] == HEADS else align  # heads are no width
        count = -(-length // of)
        group.append(torch.arange(length) // of + sum(len(part) for part in sizes))
        sizes.append(torch.full((count,), of).clamp(max=length))
        sizes[-1][-1] = length - of * (count - 1)
        sites.append(torch.full((count,), index))
        first.append(torch.arange(count) == 0)
    joined = [torch.cat(parts).to(device) for parts in (group, sizes, sites, first)]
    return joined[0], joined[1], joined[2], joined[3]
