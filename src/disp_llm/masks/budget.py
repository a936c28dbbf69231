"""What masks cost, and which masks a budget allows.

`Budget` counts parameters, FLOPs, bytes or milliseconds from the number of ones in each site. All
use one formula with different prices. `project` turns scores into the best-scoring masks whose
exact cost is at most a share of the dense model's, with aligned widths.

N entries of all sites, S sites (5 to 9 a block), G groups of entries.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, BRANCHES, EXPERTS, HEADS, SITES
from disp_llm.config.targets import Target, rounded
from disp_llm.masks.costs import CostModel, active_costs, byte_costs, parameter_costs
from disp_llm.masks.groups import Groups, fill, groups_of
from disp_llm.masks.layout import Layout

INSIDE = ("mlp_mid", EXPERTS, HEADS)
"""Sites inside a branch; a uniform model keeps the same number of their entries in every block."""


class TooSmall(InputError):
    """The asked size is below the smallest model."""

    least = 0.0
    """Cost of the smallest model as a share of the original's."""


@dataclass(frozen=True)
class Budget:
    """What is limited: block parameters unless `costs` is given."""

    layout: Layout
    costs: CostModel | None = None
    sites: tuple[str, ...] = SITES
    """Sites whose entries may be pruned; all other sites keep every entry."""
    uniform: bool = False
    """Whether all blocks keep the same number of entries inside their branches; a block that is
    twice as wide keeps twice as many."""
    least_cut: float = 0.0
    """Smallest share that a cut stream site loses. One that would lose less stays whole, since a
    cut costs a selection, whatever its width. At the very edge of a budget, one may lose less."""
    chunk: int = 1
    """Number of neighbouring residual-stream dimensions kept or pruned together, separately at each
    site."""

    @property
    def prices_cuts(self) -> bool:
        """Whether the cost model prices a selection; `least_cut` is then not used."""
        return self._limited.prices_cuts

    def hardly_cut(self, counts: Float[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """Marks residual-stream sites that would lose too few entries to pay for a selection. Sites
        inside a branch need no selection."""
        if self.prices_cuts:
            few = self._limited.saved_by_cuts(counts) <= 0
        else:
            whole = self.layout.dense_counts
            few = whole - counts < self.least_cut * whole
        return few & self.layout.in_stream

    @cached_property
    def never_pruned_sites(self) -> Bool[Tensor, " S"]:
        """Marks sites that keep all entries: those that may not be pruned, the whole attention of
        the first block of each kind (the model reads its cache length there), and any whole
        attention whose keys and values other blocks reuse."""
        kept, kinds = [], set()
        for index, block in enumerate(self.layout.blocks):
            stays = block.kind not in kinds or index in self.layout.lenders
            kinds.add(block.kind)
            for site in self.layout.sites:
                kept.append(site not in self.sites or (site == ATTENTION and stays))
        return torch.tensor(kept)

    @cached_property
    def never_pruned(self) -> Bool[Tensor, " N"]:
        """Entries of `never_pruned_sites`, which are always kept."""
        return self.never_pruned_sites[self.layout.site_of_entry]

    @cached_property
    def alike(self) -> tuple[str, ...]:
        """Sites that keep the same number of entries in all blocks."""
        return tuple(site for site in INSIDE if self.uniform and site in self.sites)

    @cached_property
    def has_large_entries(self) -> Bool[Tensor, " S"]:
        """Marks sites whose entries are so large that others may still fit where one does not."""
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
        """Name of the setting that gives the share."""
        return "keep" if self.costs is None else "fit"

    def cost(self, counts: Tensor) -> Tensor:
        """Returns the limited cost of a model with these numbers of ones in the S sites."""
        return self._limited.cost(counts)

    @property
    def dense_cost(self) -> float:
        """Limited cost of the dense model."""
        return self._limited.dense_cost

    def share(self, counts: Tensor) -> Tensor:
        """Returns the cost as a share of the dense model's."""
        return self.cost(counts) / self.dense_cost

    def share_of(self, size: Target) -> float:
        """Returns a size as a share of the dense cost; absolute sizes have the costs' unit."""
        return size.value / self.dense_cost if size.unit else size.amount

    def block_parameters(self, counts: Tensor) -> Tensor:
        """Returns T(s) from the ones of the S sites; exact in float64 and differentiable."""
        return self._parameters.cost(counts)

    @cached_property
    def dense_block_parameters(self) -> int:
        """T, block parameters of the dense model."""
        return int(self._parameters.dense_cost)

    def keep(self, counts: Tensor) -> Tensor:
        """T(s)/T."""
        return self.block_parameters(counts) / self.dense_block_parameters

    def removed_parameters(self, counts: Int[Tensor, " S"]) -> int:
        """Returns how many parameters pruning removes, biases included."""
        return -round(float(byte_costs(self.layout, 0, 1).cost(counts.cpu())))

    def active_parameters(self, counts: Tensor) -> int:
        """Returns the block parameters that a token uses: all but those of unchosen experts."""
        return round(float(active_costs(self.layout).cost(counts)))

    @cached_property
    def entry_costs(self) -> Float[Tensor, " N"]:
        """c_i: cost saved by removing one entry from the dense model.

        At least a millionth of the largest c_i, so that an entry whose measured price is zero is
        not infinitely worth keeping.
        """
        lengths = self.layout.dense_counts.clone().requires_grad_()
        with torch.enable_grad():
            (of_site,) = torch.autograd.grad(self.cost(lengths), lengths)
        return of_site.clamp(min=1e-6 * of_site.max())[self.layout.site_of_entry].float()


@dataclass(frozen=True)
class Projected:
    """Masks within a budget."""

    kept: Bool[Tensor, " N"]
    threshold: float
    """Score between the last group that was kept for its score and the first dropped group."""


def project(scores: Float[Tensor, " N"], budget: Budget, share: float, align: int = 1) -> Projected:
    """Keeps the highest-scoring entries whose cost is at most `share` of the dense model's.

    Entries of a site are ranked and taken in groups of `align`; a group scores its mean. In the
    residual stream, chunks of neighbours are ranked by their mean. One threshold holds for all
    sites: ties break by position, and less than the next group's cost goes unused. In a mixture,
    every expert keeps the same number of intermediate dimensions, its best ones. Every site keeps
    its best group; sites that the budget never prunes, or would hardly cut, keep all. A whole
    branch or expert (or, in a uniform model, a head of every block) that does not fit is skipped.
    Entries kept inside a pruned branch cost nothing but stay in the masks: they return with the
    branch.
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
    by_score = order[int(kept_anyway.sum()) : count]
    following = means[order[count]] if count < len(order) else means[order[-1]] - 1e-3
    last = means[by_score[-1]] if len(by_score) else following + 1e-3
    return Projected(kept, float((last + following) / 2))


def least_share(budget: Budget, align: int) -> float:
    """Returns the share of the dense cost that the smallest model takes."""
    try:
        project(torch.zeros(budget.layout.entries), budget, 0.0, align)
    except TooSmall as error:
        return error.least
    return 0.0


def _left_whole(
    budget: Budget,
    share: float,
    groups: Groups,
    means: Float[Tensor, " G"],
    kept_anyway: Bool[Tensor, " G"],
) -> Bool[Tensor, " S"]:
    """Returns the sites that would hardly be cut if every hardly cut site counted as whole. The
    rest of the budget then cuts the other sites."""
    may_be = torch.ones(len(budget.layout.lengths), dtype=torch.bool)
    if not budget.prices_cuts:  # by price, whole is never dearer than cut; by share, it may not fit
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
    """Returns all groups, best first, and how many of them fit into `share` of the dense cost.
    Raises TooSmall if those kept anyway do not fit.

    Args:
        kept_anyway: groups that come first, whatever their mean.
        may_be_whole: sites that count as whole where they are hardly cut.
    """

    def taken(counts: Tensor) -> float:
        if may_be_whole is not None:
            whole = may_be_whole & budget.hardly_cut(counts)
            counts = torch.where(whole, budget.layout.dense_counts, counts)
        return float(budget.share(counts))

    least = taken(groups.counts(kept_anyway))
    if least > share:
        what = f"{share} is less than the smallest model, {rounded(least, 2, up=True)}"
        hint = "ask for more, for a smaller `align`, or for more `sites`"
        error = TooSmall(what, field=budget.field, hint=hint)
        error.least = least
        raise error
    order = means.masked_fill(kept_anyway, torch.inf).argsort(descending=True, stable=True)
    first = int(kept_anyway.sum())
    return fill(groups, order, first, lambda n: taken(n) <= share, budget.has_large_entries)
