"""Cost of widths in parameters, FLOPs, bytes or time, all by one formula.

Every weight lies between two sites and belongs to the heads, the experts or the branch that it is
part of, so a cost is a sum of products:

    cost = constant + Σ_terms Σ_blocks price · Π_sites width      e.g. (q+2kv)·|S1|·h, n·|S3|·|S4|
         + Σ_cut sites (per_cut + per_selected·|S|)

S sites (5 to 9 a block), K sites of a block, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.config.names import BRANCH_OF, EXPERTS, HEADS, Site
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import Numbers

Terms = dict[tuple[Site, ...], Float[Tensor, " L"]]
"""Prices per block, keyed by the sites whose widths they multiply. The width of the five sites is
their number of ones; that of heads, experts and whole branches is the kept share."""


@dataclass(frozen=True)
class CostModel:
    """Cost of a model with given widths. Weights in a dropped branch cost nothing. Heads, experts
    and branches that are no sites count as fully kept."""

    layout: Layout
    terms: Terms
    constant: float = 0.0
    """Cost outside the blocks."""
    per_cut: float = 0.0
    """Cost of the selection at a cut residual-stream site, whatever its width. A site is cut if it
    does not keep all of its entries."""
    per_selected: float = 0.0
    """Cost of each entry kept at a cut residual-stream site."""
    dense_cost: float = 0.0
    """Cost of the dense model; a budget is a share of it."""

    def cost(self, counts: Tensor) -> Tensor:
        """Returns the cost from the ones of the S sites; exact in float64 and differentiable."""
        of_widths = self._of_widths(counts)
        return of_widths + self._of_selections(counts).sum() if self.prices_cuts else of_widths

    @property
    def prices_cuts(self) -> bool:
        """Whether a selection has a price."""
        return self.per_cut > 0 or self.per_selected > 0

    def saved_by_cuts(self, counts: Tensor) -> Tensor:
        """Returns how much each site's cut saves, with the other sites unchanged; negative where
        the selection costs more than the cut saves."""
        widths = counts.detach().double().requires_grad_()
        with torch.enable_grad():  # the cost of widths is linear in each site's width
            (prices,) = torch.autograd.grad(self._of_widths(widths), widths)
        cut = self.layout.dense_counts.to(counts.device) - counts
        return prices * cut - self._of_selections(counts)

    def _of_widths(self, counts: Tensor) -> Tensor:
        widths = self._widths(counts)
        total = torch.tensor(self.constant, dtype=torch.float64, device=counts.device)
        for sites, prices in self.terms.items():
            term = prices.to(counts.device)
            for site in dict.fromkeys((*sites, BRANCH_OF[sites[0]])):
                term = term * widths.get(site, 1.0)
            total = total + term.sum()
        return total

    def _of_selections(self, counts: Tensor) -> Tensor:
        """Returns the selection cost of each site, (S)."""
        layout, widths = self.layout, self._widths(counts)
        lengths = layout.dense_counts.to(counts.device)
        cut = (counts < lengths) & layout.in_stream.to(counts.device)
        whole = torch.ones(len(layout.blocks), dtype=torch.float64, device=counts.device)
        stays = torch.stack([widths.get(BRANCH_OF[site], whole) for site in layout.sites], 1)
        return cut * stays.flatten() * (self.per_cut + self.per_selected * counts.double())

    def _widths(self, counts: Tensor) -> dict[Site, Float[Tensor, " L"]]:
        """Returns the widths of each mask site per block, in the terms' units."""
        layout = self.layout
        by_site = counts.double().view(len(layout.blocks), -1).unbind(1)
        widths = dict(zip(layout.sites, by_site, strict=True))
        for site in set(widths) & {HEADS, EXPERTS}:
            widths[site] = widths[site] / torch.tensor(layout.widths[site], device=counts.device)
        return widths


def of_blocks(numbers: Sequence) -> Float[Tensor, " L"]:
    """Converts one number per block to float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def weighted(*parts: tuple[float, CostModel]) -> CostModel:
    """Returns the weighted sum of cost models that share a layout."""
    terms = Terms()
    for factor, part in parts:
        terms = _sum(terms, {sites: factor * prices for sites, prices in part.terms.items()})
    names = ("constant", "per_cut", "per_selected", "dense_cost")
    numbers: dict[str, Any] = {
        name: sum(factor * getattr(part, name) for factor, part in parts) for name in names
    }
    return replace(parts[0][1], terms=terms, **numbers)


def _sum(terms: Terms, more: Terms) -> Terms:
    return terms | {sites: terms.get(sites, 0.0) + prices for sites, prices in more.items()}


def _terms(blocks: Sequence[Numbers]) -> Terms:
    every = dict.fromkeys(sites for numbers in blocks for sites in numbers if numbers[sites])
    return {sites: of_blocks([numbers.get(sites, 0) for numbers in blocks]) for sites in every}


def parameter_costs(layout: Layout) -> CostModel:
    """Prices block parameters: the weights of the linear layers inside the blocks."""
    return _of_parameters(layout, _terms([block.weights for block in layout.blocks]))


def active_costs(layout: Layout) -> CostModel:
    """Prices the block parameters that a token uses. A token runs through a fixed number of
    experts, however many are kept."""
    used = of_blocks([block.chosen / block.experts for block in layout.blocks])
    terms = _terms([block.weights for block in layout.blocks])
    for pair in (("mlp_in", "mlp_mid"), ("mlp_mid", "mlp_out")):
        terms[pair] = used * terms.pop((*pair, EXPERTS))
    return _of_parameters(layout, terms)


def _of_parameters(layout: Layout, terms: Terms) -> CostModel:
    costs = CostModel(layout, terms)
    return replace(costs, dense_cost=float(costs.cost(layout.dense_counts)))


def flop_costs(layout: Layout, head_parameters: int) -> CostModel:
    """Prices floating-point operations for one token: two per weight that it uses in the blocks'
    linear layers and the head. Attention itself is left out: it depends on the length and is not
    pruned."""
    weights = active_costs(layout)
    whole = weights.dense_cost + head_parameters
    return weighted((2.0, replace(weights, constant=float(head_parameters), dense_cost=whole)))


def byte_costs(layout: Layout, parameters: int, itemsize: int) -> CostModel:
    """Prices the bytes of all weights, including biases, norms, embeddings and head; tied weights
    count once. An itemsize of 1 counts all parameters, as the paper does."""
    weights, biases = parameter_costs(layout), _terms([block.biases for block in layout.blocks])
    blocks = replace(weights, terms=_sum(weights.terms, biases))
    outside = parameters - float(blocks.cost(layout.dense_counts))
    return weighted(
        (float(itemsize), replace(blocks, constant=outside, dense_cost=float(parameters)))
    )


def memory_costs(layout: Layout, parameters: int, itemsize: int, cached: list[int]) -> CostModel:
    """Prices the bytes of all weights and of the KV cache.

    Args:
        cached: number of tokens that each block caches, over all sequences.
    """
    weights = byte_costs(layout, parameters, itemsize)
    cache = itemsize * of_blocks(cached) * of_blocks([one.cached for one in layout.blocks])
    return replace(
        weights,
        terms=_sum(weights.terms, {(HEADS,): cache}),
        dense_cost=weights.dense_cost + float(cache.sum()),
    )
