"""What widths cost: parameters, FLOPs, bytes or time, all by one formula.

S sites (5 to 9 a block), K sites of a block, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.config.names import ATTENTION, BRANCH_OF, BRANCHES, EXPERTS, HEADS, MLP, Site
from disp_llm.masks.layout import Layout


@dataclass(frozen=True)
class CostModel:
    """What a model of given widths costs.

    With |S1| to |S5| the widths of a block's sites, h the share of its KV heads that is kept and e
    that of its experts: `constant_cost + Σ_blocks per_entry·|S| + h·attention·(|S1|, |S2|) +
    e·(mlp_read·|S3|·|S4| + mlp_write·|S4|·|S5| + router·|S3| + in_experts·(|S4|, |S5|)) + Σ_cut
    sites (per_cut + per_selected·|S|)`; a site of the stream is cut where it does not keep all of
    its entries. What lies in a branch that is not kept as a whole costs nothing. Where
    `counts_chosen` says so, only the experts that a token runs through count, of which there are as
    many whatever is kept, so that e = 1 there but for the router and for what is an expert's own.
    """

    layout: Layout
    constant_cost: float
    """Of everything that widths do not change."""
    per_entry: Float[Tensor, "L K"]
    """Of one entry of each of the K sites of a block, whatever else is kept."""
    attention: Float[Tensor, "L 2"]
    """Of one entry of attn_in and of attn_out, with all heads kept."""
    mlp_read: Float[Tensor, " L"]
    """Of one pair of an mlp_in and an mlp_mid entry."""
    mlp_write: Float[Tensor, " L"]
    """Of one pair of an mlp_mid and an mlp_out entry."""
    router: Float[Tensor, " L"]
    """Of one mlp_in entry in the router, with all experts kept; 0 of a router that reads the whole
    stream, whose rows are costs of whole experts."""
    in_experts: Float[Tensor, "L 2"]
    """Of one entry of mlp_mid and of mlp_out in the experts, with all of them kept."""
    counts_chosen: bool = False
    """Whether experts count as far as a token runs through them."""
    per_cut: float = 0.0
    """Of the selection that a cut site of the residual stream takes, whatever its width."""
    per_selected: float = 0.0
    """Of one entry that is kept there."""
    dense_cost: float = 0.0
    """Of the dense model; a budget is a share of it."""

    def cost(self, counts: Tensor) -> Tensor:
        """From the ones of each of the S sites; exact in float64 and differentiable."""
        of_widths = self._of_widths(counts)
        return of_widths + self._of_selections(counts).sum() if self.prices_cuts else of_widths

    @property
    def prices_cuts(self) -> bool:
        """Whether the cost of a selection is known."""
        return self.per_cut > 0 or self.per_selected > 0

    def saved_by_cuts(self, counts: Tensor) -> Tensor:
        """How much less the model costs since each of the S sites is cut, the others being as they
        are; below 0 where the selection costs more than what is cut."""
        widths = counts.detach().double().requires_grad_()
        with torch.enable_grad():  # the cost of widths is linear in that of each site
            (prices,) = torch.autograd.grad(self._of_widths(widths), widths)
        cut = torch.tensor(self.layout.lengths, device=counts.device) - counts
        return prices * cut - self._of_selections(counts)

    def _of_selections(self, counts: Tensor) -> Tensor:
        """What the selection of each site costs, (S)."""
        lengths = torch.tensor(self.layout.lengths, device=counts.device)
        cut = (counts < lengths) & self.layout.in_stream.to(counts.device)
        stays = self._stays(counts.double().view(len(self.layout.blocks), -1)).flatten()
        return cut * stays * (self.per_cut + self.per_selected * counts.double())

    def _stays(self, widths: Float[Tensor, "L K"]) -> Float[Tensor, "L K"]:
        """Whether the branch that each site lies in is there; 1 where branches are no sites."""
        sites = self.layout.sites
        stays = torch.ones_like(widths)
        for name in set(BRANCHES) & set(sites):
            inside = torch.tensor([BRANCH_OF[site] == name != site for site in sites])
            of_branch = widths[:, sites.index(name), None]
            stays = torch.where(inside.to(widths.device), of_branch, stays)
        return stays

    def _of_widths(self, counts: Tensor) -> Tensor:
        widths = counts.double().view(len(self.layout.blocks), -1)
        numbers = self.mlp_read, self.mlp_write, self.router, self.in_experts
        per_entry, attention, mlp_read, mlp_write, router, own = (
            t.to(counts.device) for t in (self.per_entry, self.attention, *numbers)
        )
        stays, blocks = self._stays(widths), self.layout.blocks
        heads = self._share_of(HEADS, [block.heads for block in blocks], widths)
        experts = self._share_of(EXPERTS, [block.experts for block in blocks], widths)
        in_attention = attention * widths[:, :2] * stays[:, :2] * heads[:, None]
        s3, s4, s5 = widths[:, 2:5].unbind(-1)
        in_experts = mlp_read * s3 * s4 + mlp_write * s4 * s5
        in_experts = in_experts if self.counts_chosen else in_experts * experts
        by_expert = router * s3 + (own * widths[:, 3:5]).sum(1)
        in_mlp = (in_experts + by_expert * experts) * stays[:, 3]
        inside = per_entry * widths * stays
        return self.constant_cost + inside.sum() + in_attention.sum() + in_mlp.sum()

    def _share_of(
        self, site: Site, lengths: list[int], widths: Float[Tensor, "L K"]
    ) -> Float[Tensor, " L"]:
        """The share that each block keeps of its heads or experts; 1 where these are no site."""
        if site not in self.layout.sites:
            return torch.ones_like(widths[:, 0])
        return widths[:, self.layout.sites.index(site)] / torch.tensor(lengths).to(widths.device)


def of_blocks(numbers: Sequence) -> Tensor:
    """Numbers of every block, exactly."""
    return torch.tensor(numbers, dtype=torch.float64)


def parameter_costs(layout: Layout, counts_chosen: bool = False) -> CostModel:
    """Block parameters: the weights of the linear layers inside the blocks.

    Args:
        counts_chosen: whether of the experts of a mixture those count that a token runs through.
    """
    blocks, sites = layout.blocks, layout.sites
    per_entry = torch.zeros(len(blocks), len(sites), dtype=torch.float64)
    per_entry[:, sites.index("mlp_in")] += of_blocks([block.shared_read for block in blocks])
    per_entry[:, sites.index("mlp_out")] += of_blocks([block.shared_write for block in blocks])
    share = of_blocks([block.chosen / block.experts if counts_chosen else 1.0 for block in blocks])
    constant = _add_to(ATTENTION, per_entry, layout, of_blocks([block.inside for block in blocks]))
    rows = of_blocks([block.router_reads for block in blocks])  # go with experts, or the whole MLP
    if EXPERTS in sites:
        constant += _add_to(EXPERTS, per_entry, layout, rows)
    else:
        experts = of_blocks([block.experts for block in blocks])
        constant += _add_to(MLP, per_entry, layout, rows * experts)
    routers = [0 if block.router_reads else block.router * block.experts for block in blocks]
    costs = CostModel(
        layout,
        constant_cost=constant,
        per_entry=per_entry,
        attention=of_blocks([(block.qkv, block.q) for block in blocks]),
        mlp_read=share * of_blocks([block.num_input_projections for block in blocks]),
        mlp_write=share,
        router=of_blocks(routers),
        in_experts=of_blocks([(0, 0) for _ in blocks]),
        counts_chosen=counts_chosen,
    )
    return replace(costs, dense_cost=float(costs.cost(torch.tensor(layout.lengths))))


def weighted(*parts: tuple[float, CostModel]) -> CostModel:
    """Cost models of one layout, each times its factor, together."""
    same = ("layout", "counts_chosen")  # of parts that belong together
    numbers = (field.name for field in fields(CostModel) if field.name not in same)
    sums: dict[str, Any] = {
        name: sum(factor * getattr(part, name) for factor, part in parts) for name in numbers
    }
    return replace(parts[0][1], **sums)


def _add_to(
    site: Site, per_entry: Float[Tensor, "L K"], layout: Layout, costs: Float[Tensor, " L"]
) -> float:
    """Adds what goes with the entries of a site only; all of it stays where that is no site."""
    if site not in layout.sites:
        return float(costs.sum())
    per_entry[:, layout.sites.index(site)] += costs
    return 0.0


def flop_costs(layout: Layout, head_parameters: int) -> CostModel:
    """Floating-point operations for one token, two a weight, of the linear layers of the blocks and
    of the head; attention itself, which depends on the length and is not pruned, is left out."""
    weights = parameter_costs(layout, counts_chosen=True)
    with_head = replace(
        weights,
        constant_cost=weights.constant_cost + head_parameters,
        dense_cost=weights.dense_cost + head_parameters,
    )
    return weighted((2.0, with_head))


def byte_costs(layout: Layout, parameters: int, itemsize: int) -> CostModel:
    """Bytes of all weights of the model: biases, norms, embeddings and head included, what is tied
    once. With an itemsize of 1 all parameters, as the paper counts them."""
    weights = parameter_costs(layout)
    with_biases = replace(
        weights,
        per_entry=weights.per_entry + of_blocks([block.biases for block in layout.blocks]),
        in_experts=of_blocks([block.of_experts for block in layout.blocks]),
    )
    outside = parameters - float(with_biases.cost(torch.tensor(layout.lengths)))
    all_weights = replace(
        with_biases,
        constant_cost=weights.constant_cost + outside,
        dense_cost=float(parameters),
    )
    return weighted((float(itemsize), all_weights))


def memory_costs(layout: Layout, parameters: int, itemsize: int, cached: list[int]) -> CostModel:
    """Bytes of all weights and of the keys and values of cached tokens.

    Args:
        cached: how many tokens each block holds, of all sequences together.
    """
    weights = byte_costs(layout, parameters, itemsize)
    of_token = of_blocks([block.cached for block in layout.blocks])
    cache = itemsize * of_blocks(cached) * of_token  # of each block
    per_entry, constant = weights.per_entry.clone(), weights.constant_cost
    if HEADS in layout.sites:
        heads = of_blocks([block.heads for block in layout.blocks])
        constant += _add_to(HEADS, per_entry, layout, cache / heads)
    else:
        constant += _add_to(ATTENTION, per_entry, layout, cache)
    return replace(
        weights,
        constant_cost=constant,
        per_entry=per_entry,
        dense_cost=weights.dense_cost + float(cache.sum()),
    )
