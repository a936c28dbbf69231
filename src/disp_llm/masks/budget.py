"""What masks cost, and the masks that a budget allows.

`Budget` counts parameters, FLOPs, bytes or milliseconds from the number of ones of each site: all
are one formula with costs of their own. `project` turns scores into the masks with the best scores
that stay within a share of the dense model's cost, exactly, with aligned widths.

N entries of all sites, S sites (5 to 8 a block), L blocks, G groups of `align` entries of
one site.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, BRANCHES, HEADS, SITES
from disp_llm.masks.costs import CostModel, parameter_costs
from disp_llm.masks.layout import Layout


@dataclass(frozen=True)
class Budget:
    """What is limited: block parameters, unless another cost model is given."""

    layout: Layout
    costs: CostModel | None = None
    sites: tuple[str, ...] = SITES
    """Sites whose entries may be pruned; the others keep all of theirs."""
    least_cut: float = 0.0
    """Share of the entries of a site of the residual stream: where fewer would be pruned, none is,
    for a site that is cut costs a selection, whatever its width."""

    @cached_property
    def lengths(self) -> Float[Tensor, " S"]:
        """Entries of each site."""
        return torch.tensor(self.layout.lengths, dtype=torch.float64)

    @property
    def prices_cuts(self) -> bool:
        """Whether it is known what a selection costs, so that `least_cut` need not stand for it."""
        return self._limited.prices_cuts

    def hardly_cut(self, counts: Float[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """Which sites would lose fewer entries than pays for a selection; one inside a branch needs
        none."""
        if self.prices_cuts:
            few = self._limited.saved_by_cuts(counts) <= 0
        else:
            few = self.lengths - counts < self.least_cut * self.lengths
        return few & self.layout.in_stream

    @cached_property
    def never_pruned_sites(self) -> Bool[Tensor, " S"]:
        """Which sites keep all of their entries: those that may not be pruned, and the first
        attention of each kind, whose cache tells a model how much it has read."""
        kept, kinds = [], set()
        for block in self.layout.blocks:
            first = block.kind not in kinds
            kinds.add(block.kind)
            for site in self.layout.sites:
                kept.append(site not in self.sites or (site == ATTENTION and first))
        return torch.tensor(kept)

    @cached_property
    def never_pruned(self) -> Bool[Tensor, " N"]:
        """Entries that are kept in any case: those of the sites above."""
        return self.never_pruned_sites[self.layout.site_of_entry]

    @cached_property
    def _parameters(self) -> CostModel:
        return parameter_costs(self.layout)

    @cached_property
    def _limited(self) -> CostModel:
        return self.costs or self._parameters

    @property
    def field(self) -> str:
        """Name of the setting that states the share."""
        return "keep" if self.costs is None else "target"

    def cost(self, counts: Tensor) -> Tensor:
        """What a model with so many ones in each of the S sites costs of what is limited."""
        return self._limited.cost(counts)

    @property
    def dense_cost(self) -> float:
        """What the dense model costs of what is limited."""
        return self._limited.dense_cost

    def share(self, counts: Tensor) -> Tensor:
        """The same as a share of the dense model's cost."""
        return self.cost(counts) / self.dense_cost

    def block_parameters(self, counts: Tensor) -> Tensor:
        """T(s), from the ones of each of the S sites; exact in float64 and differentiable.

        `|S1|·(q + 2kv) + |S2|·q + n·|S3|·|S4| + |S4|·|S5|` for n input projections, summed over
        blocks, and what no site cuts; q and kv shrink with the heads, where these are a site.
        """
        return self._parameters.cost(counts)

    @cached_property
    def dense_block_parameters(self) -> int:
        """T, block parameters of the dense model."""
        return int(self._parameters.dense_cost)

    def keep(self, counts: Tensor) -> Tensor:
        """T(s)/T."""
        return self.block_parameters(counts) / self.dense_block_parameters

    def removed_parameters(self, counts: Int[Tensor, " S"]) -> int:
        """How many parameters less the cut model has, biases included."""
        lengths = torch.tensor(self.layout.lengths)
        biases = torch.tensor([block.biases for block in self.layout.blocks]).flatten()
        weights = self.dense_block_parameters - int(self.block_parameters(counts))
        return weights + int(((lengths - counts.cpu()) * biases).sum())

    def flops_per_token(self, counts: Tensor) -> int:
        """Floating-point operations of the block linears for one token, two a weight."""
        return 2 * int(self.block_parameters(counts))

    @cached_property
    def entry_costs(self) -> Float[Tensor, " N"]:
        """c_i: how much of what is limited removing one entry of the dense model saves.

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
    that the budget never prunes, or of which it would prune hardly anything, keeps all. A whole
    branch that there is no room for is passed over. What is kept inside of a pruned branch counts
    nothing, but stays in the masks: it is what the branch would come back with.

    Raises:
        InputError: even the best group of every site is more than the budget.
    """
    layout = budget.layout
    site = layout.site_of_entry.to(scores.device)
    ranked = torch.argsort(scores, descending=True, stable=True)
    ranked = ranked[torch.argsort(site[ranked], stable=True)]  # by site, best first within a site
    group, sizes, group_site, first = _groups(layout, align, scores.device)
    means = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device)
    means = means.index_add(0, group, scores.detach()[ranked].double()) / sizes
    groups = _Groups(means, sizes.double(), group_site)
    kept_anyway = first | budget.never_pruned_sites.to(first.device)[group_site]
    if budget.least_cut or budget.prices_cuts:
        # First which sites are cut, then what of them, by the rest of the budget.
        kept_anyway = kept_anyway | groups.hardly_cut(budget, share, kept_anyway)
    order, low = groups.within(budget, share, kept_anyway)
    kept_group = torch.zeros(len(order), dtype=torch.bool, device=scores.device)
    kept_group[order[:low]] = True
    kept = torch.zeros(layout.entries, dtype=torch.bool, device=scores.device)
    kept[ranked] = kept_group[group]
    last = means[order[low - 1]]
    following = means[order[low]] if low < len(order) else last - 1e-3
    return Projected(kept, float((last + following) / 2))


@dataclass(frozen=True)
class _Groups:
    """Entries that are kept or pruned together."""

    means: Float[Tensor, " G"]
    sizes: Float[Tensor, " G"]
    site: Int[Tensor, " G"]

    def _in_order(self, order: Int[Tensor, " G"]) -> "_Groups":
        return _Groups(self.means[order], self.sizes[order], self.site[order])

    def _counts(self, budget: Budget, chosen: Tensor | slice) -> Float[Tensor, " S"]:
        """How many entries of each site the chosen groups have."""
        counts = self.sizes.new_zeros(len(budget.lengths))
        return counts.index_add(0, self.site[chosen], self.sizes[chosen]).cpu()

    def hardly_cut(
        self, budget: Budget, share: float, kept_anyway: Bool[Tensor, " G"]
    ) -> Bool[Tensor, " G"]:
        """The groups of sites that are to keep all of theirs, since hardly any would be pruned."""
        may_be_whole = torch.ones(len(budget.lengths), dtype=torch.bool)
        if not budget.prices_cuts:  # a price makes a model dearer, a share may not fit any more
            may_be_whole = ~budget.hardly_cut(self._counts(budget, kept_anyway))
        order, low = self.within(budget, share, kept_anyway, may_be_whole)
        whole = may_be_whole & budget.hardly_cut(self._counts(budget, order[:low]))
        return whole.to(self.site.device)[self.site]

    def within(
        self,
        budget: Budget,
        share: float,
        kept_anyway: Bool[Tensor, " G"],
        may_be_whole: Bool[Tensor, " S"] | None = None,
    ) -> tuple[Int[Tensor, " G"], int]:
        """All groups, best first, and how many of them a share of the dense cost has room for.

        Args:
            kept_anyway: those that come first, whatever their mean.
            may_be_whole: sites that count with all of their entries where they are hardly cut.

        Raises:
            InputError: what is kept anyway is more than that.
        """
        order = torch.argsort(
            self.means.masked_fill(kept_anyway, torch.inf), descending=True, stable=True
        )
        ordered = self._in_order(order)
        allowed = share * budget.dense_cost

        def cost(groups: int) -> float:
            counts = ordered._counts(budget, slice(groups))
            if may_be_whole is not None:
                whole = may_be_whole & budget.hardly_cut(counts)
                counts = torch.where(whole, budget.lengths, counts)
            return float(budget.cost(counts))

        low, high = int(kept_anyway.sum()), len(order)  # low fits, everything above high does not
        if cost(low) > allowed:
            raise InputError(
                f"{share} is less than the smallest model, {cost(low) / budget.dense_cost:.2g}",
                field=budget.field,
                hint="ask for more, for a smaller `align`, or for more `sites`",
            )
        branches = torch.tensor([site in BRANCHES for site in budget.layout.sites])
        end = high
        while True:
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if cost(middle) <= allowed else (low, middle - 1)
            if low == end or not branches[ordered.site[low] % len(branches)]:
                return order, low
            # No room for a whole branch: it comes last, and what follows it may still fit.
            order = torch.cat([order[:low], order[low + 1 :], order[low : low + 1]])
            ordered, end = self._in_order(order), end - 1
            high = end


@lru_cache(maxsize=4)  # the same at every step of a run
def _groups(
    layout: Layout, align: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For entries laid out by site: the group of each, and each group's size, site, being first.

    The last group of a site is smaller where `align` does not divide its length.
    """
    group, sizes, sites, first = [], [], [], []
    for index, length in enumerate(layout.lengths):
        site = layout.sites[index % len(layout.sites)]
        of = 1 if site == HEADS else align  # heads are no width
        count = -(-length // of)
        group.append(torch.arange(length) // of + sum(len(part) for part in sizes))
        sizes.append(torch.full((count,), of).clamp(max=length))
        sizes[-1][-1] = length - of * (count - 1)
        sites.append(torch.full((count,), index))
        first.append((torch.arange(count) == 0) & (site not in BRANCHES))
    joined = [torch.cat(parts).to(device) for parts in (group, sizes, sites, first)]
    return joined[0], joined[1], joined[2], joined[3]
