"""What masks cost, and the masks that a budget allows.

`Budget` counts parameters, FLOPs, bytes or milliseconds from the number of ones of each site: all
are one formula with costs of their own. `project` turns scores into the masks with the best scores
that stay within a share of the dense model's cost, exactly, with aligned widths.

N entries of all sites, S sites (5 to 9 a block), G groups of entries.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, BRANCHES, EXPERTS, HEADS, SITES
from disp_llm.config.targets import Target
from disp_llm.masks.costs import CostModel, active_costs, byte_costs, parameter_costs
from disp_llm.masks.groups import Groups, fill, groups_of
from disp_llm.masks.layout import Layout

INSIDE = ("mlp_mid", EXPERTS, HEADS)
"""Sites inside of a branch, of which a uniform model keeps as many in every block."""


class TooSmall(InputError):
    """A size below the smallest model."""

    least = 0.0
    """Share of the original's cost that the smallest model has."""


@dataclass(frozen=True)
class Budget:
    """What is limited: block parameters, unless another cost model is given."""

    layout: Layout
    costs: CostModel | None = None
    sites: tuple[str, ...] = SITES
    """Sites whose entries may be pruned; the others keep all of theirs."""
    uniform: bool = False
    """Whether all blocks keep as many entries inside of their branches, twice as many where a block
    is twice as wide."""
    least_cut: float = 0.0
    """A site of the residual stream that would lose a smaller share loses none, for a site that is
    cut costs a selection, whatever its width; at the very edge of a budget one may."""
    chunk: int = 1
    """Neighbours in the residual stream that are kept or pruned together, at every site by
    itself."""

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
            whole = self.layout.dense_counts
            few = whole - counts < self.least_cut * whole
        return few & self.layout.in_stream

    @cached_property
    def never_pruned_sites(self) -> Bool[Tensor, " S"]:
        """Which sites keep all of their entries: those that may not be pruned, the first attention
        of each kind, whose cache tells a model how much it has read, and one whose keys and values
        other blocks take over."""
        kept, kinds = [], set()
        for index, block in enumerate(self.layout.blocks):
            stays = block.kind not in kinds or index in self.layout.lenders
            kinds.add(block.kind)
            for site in self.layout.sites:
                kept.append(site not in self.sites or (site == ATTENTION and stays))
        return torch.tensor(kept)

    @cached_property
    def never_pruned(self) -> Bool[Tensor, " N"]:
        """Entries that are kept in any case: those of the sites above."""
        return self.never_pruned_sites[self.layout.site_of_entry]

    @cached_property
    def alike(self) -> tuple[str, ...]:
        """Sites that keep as many entries in all blocks."""
        return tuple(site for site in INSIDE if self.uniform and site in self.sites)

    @cached_property
    def has_large_entries(self) -> Bool[Tensor, " S"]:
        """Which sites have entries so large that, where one has no room, what follows may have."""
        large = (*BRANCHES, EXPERTS, *((HEADS,) if self.uniform else ()))
        return torch.tensor([site in large for site in self.layout.sites] * len(self.layout.blocks))

    @cached_property
    def _parameters(self) -> CostModel:
        return parameter_costs(self.layout)

    @cached_property
    def _limited(self) -> CostModel:
        return self.costs or self._parameters

    @property
    def field(self) -> str:
        """Name of the setting that states the share."""
        return "keep" if self.costs is None else "fit"

    def cost(self, counts: Tensor) -> Tensor:
        """What a model with so many ones in each of the S sites costs of what is limited."""
        return self._limited.cost(counts)

    @property
    def dense_cost(self) -> float:
        """What the dense model costs of what is limited."""
        return self._limited.dense_cost

    def share(self, counts: Tensor) -> Tensor:
        """What such a model costs, as a share of what the dense one does."""
        return self.cost(counts) / self.dense_cost

    def share_of(self, size: Target) -> float:
        """A size as a share of the dense model's cost; an absolute is in the unit of the costs."""
        return size.value / self.dense_cost if size.unit else size.amount

    def block_parameters(self, counts: Tensor) -> Tensor:
        """T(s), from the ones of each of the S sites; exact in float64 and differentiable."""
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
        return -round(float(byte_costs(self.layout, 0, 1).cost(counts.cpu())))

    def active_parameters(self, counts: Tensor) -> int:
        """Block parameters that a token uses: all, but for the experts that are not chosen."""
        return round(float(active_costs(self.layout).cost(counts)))

    @cached_property
    def entry_costs(self) -> Float[Tensor, " N"]:
        """c_i: how much of what is limited removing one entry of the dense model saves.

        At least a millionth of the dearest: a price that was measured as nothing must not make an
        entry infinitely worth keeping.
        """
        lengths = self.layout.dense_counts.clone().requires_grad_()
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
    In the residual stream it is chunks of neighbours that are ranked, by their mean. One threshold
    holds for all sites, so that ties break by position and the waste is less than the next group.
    Of a mixture every expert keeps as many intermediate dimensions, its best. Every site keeps its
    best group; one that the budget never prunes, or would hardly prune, keeps all. A whole branch
    or expert, or a head of every block of a uniform model, that there is no room for is passed
    over. What is kept inside of a pruned one counts nothing, but stays in the masks: it is what it
    would come back with.
    """
    layout, device = budget.layout, scores.device
    scores = layout.by_chunks(scores.detach(), budget.chunk)
    ranked = layout.ranked(scores)
    groups = groups_of(layout, align, budget.chunk, budget.alike, device)
    means = groups.means(scores[ranked])
    kept_anyway = groups.is_first | groups.of_sites(budget.never_pruned_sites)
    if budget.least_cut or budget.prices_cuts:
        whole = _left_whole(budget, share, groups, means, kept_anyway)
        kept_anyway = kept_anyway | groups.of_sites(whole)
    order, count = _within(budget, share, groups, means, kept_anyway)
    kept = torch.zeros(layout.entries, dtype=torch.bool, device=device)
    kept[ranked] = groups.first(order, count)[groups.of_entry]
    last = means[order[count - 1]]
    following = means[order[count]] if count < len(order) else last - 1e-3
    return Projected(kept, float((last + following) / 2))


def _left_whole(
    budget: Budget,
    share: float,
    groups: Groups,
    means: Float[Tensor, " G"],
    kept_anyway: Bool[Tensor, " G"],
) -> Bool[Tensor, " S"]:
    """Sites that would hardly be cut, when each that is hardly cut counts with all of its entries:
    the rest of the budget then cuts the others."""
    may_be = torch.ones(len(budget.layout.lengths), dtype=torch.bool)
    if not budget.prices_cuts:  # a price makes a model dearer, a share may not fit any more
        may_be = ~budget.hardly_cut(groups.counts(kept_anyway))
    order, count = _within(budget, share, groups, means, kept_anyway, may_be)
    return may_be & budget.hardly_cut(groups.counts(groups.first(order, count)))


def _within(
    budget: Budget,
    share: float,
    groups: Groups,
    means: Float[Tensor, " G"],
    kept_anyway: Bool[Tensor, " G"],
    may_be_whole: Bool[Tensor, " S"] | None = None,
) -> tuple[Int[Tensor, " G"], int]:
    """All groups, best first, and how many of them a share of the dense cost has room for.

    Args:
        kept_anyway: those that come first, whatever their mean.
        may_be_whole: sites that count with all of their entries where they are hardly cut.
    """
    allowed = share * budget.dense_cost

    def cost(counts: Tensor) -> float:
        if may_be_whole is not None:
            whole = may_be_whole & budget.hardly_cut(counts)
            counts = torch.where(whole, budget.layout.dense_counts, counts)
        return float(budget.cost(counts))

    smallest = cost(groups.counts(kept_anyway))
    if smallest > allowed:
        least = smallest / budget.dense_cost
        what = f"{share} is less than the smallest model, {least:.2g}"
        hint = "ask for more, for a smaller `align`, or for more `sites`"
        error = TooSmall(what, field=budget.field, hint=hint)
        error.least = least
        raise error
    order = means.masked_fill(kept_anyway, torch.inf).argsort(descending=True, stable=True)
    first = int(kept_anyway.sum())
    return fill(groups, order, first, lambda n: cost(n) <= allowed, budget.has_large_entries)
