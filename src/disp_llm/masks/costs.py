"""What widths cost: parameters, FLOPs, bytes or time, all by one formula.

S sites (5 a block, 6 with heads), K sites of a block, L blocks.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.masks.layout import IN_STREAM, Layout


@dataclass(frozen=True)
class CostModel:
    """What a model of given widths costs.

    With |S1| to |S5| the widths of a block's sites and h the share of its KV heads that is kept:
    `constant_cost + Σ_blocks per_entry·|S| + h·attention·(|S1|, |S2|) + mlp_read·|S3|·|S4| +
    mlp_write·|S4|·|S5| + Σ_cut sites (per_cut + per_selected·|S|)`; a site of the stream is
    cut where it does not keep all of its entries.
    """

    constant_cost: float
    """Cost of everything that widths do not change."""
    per_entry: Float[Tensor, "L K"]
    """Cost of one entry of each of the K sites of a block, whatever else is kept."""
    attention: Float[Tensor, "L 2"]
    """Cost of one entry of attn_in and of attn_out, with all heads kept."""
    mlp_read: Float[Tensor, " L"]
    """Cost of one pair of an mlp_in and an mlp_mid entry."""
    mlp_write: Float[Tensor, " L"]
    """Cost of one pair of an mlp_mid and an mlp_out entry."""
    heads: Float[Tensor, " L"]
    """Number of KV heads, where they are a site."""
    full: Float[Tensor, "L K"]
    """Entries of each site."""
    per_cut: float = 0.0
    """Cost of the selection that a cut site of the residual stream takes, whatever its width."""
    per_selected: float = 0.0
    """Cost of one entry that is kept there."""
    dense_cost: float = 0.0
    """Cost of the dense model; a budget is a share of it."""

    def cost(self, counts: Tensor) -> Tensor:
        """From the ones of each of the S sites; exact in float64 and differentiable."""
        return self._of_widths(counts) + self._of_selections(counts).sum()

    def saved_by_cuts(self, counts: Tensor) -> Tensor:
        """How much less the model costs since each of the S sites is cut, the others being as they
        are; below 0 where the selection costs more than what is cut."""
        widths = counts.detach().double().requires_grad_()
        with torch.enable_grad():  # the cost of widths is linear in that of each site
            (prices,) = torch.autograd.grad(self._of_widths(widths), widths)
        cut = self.full.flatten().to(counts.device) - counts
        return prices * cut - self._of_selections(counts).flatten()

    def _of_selections(self, counts: Tensor) -> Tensor:
        """What the selection of each site costs, (L, K)."""
        full = self.full.to(counts.device)
        widths = counts.double().view(full.shape)
        streams = torch.tensor(IN_STREAM, device=counts.device)
        cut = (widths < full) & streams[: full.shape[1]]
        return cut * (self.per_cut + self.per_selected * widths)

    def _of_widths(self, counts: Tensor) -> Tensor:
        widths = counts.double().view(len(self.mlp_read), -1)
        per_entry, attention, mlp_read, mlp_write, heads = (
            t.to(counts.device)
            for t in (self.per_entry, self.attention, self.mlp_read, self.mlp_write, self.heads)
        )
        s3, s4, s5 = widths[:, 2:5].unbind(-1)
        kept_heads = widths[:, 5:] / heads[:, None] if widths.shape[1] > 5 else 1.0
        in_attention = (attention * widths[:, :2] * kept_heads).sum()
        in_mlp = (mlp_read * s3 * s4 + mlp_write * s4 * s5).sum()
        return self.constant_cost + (per_entry * widths).sum() + in_attention + in_mlp


def parameter_costs(layout: Layout) -> CostModel:
    """Block parameters: the weights of the linear layers inside the blocks."""

    def of_blocks(numbers: list) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    costs = CostModel(
        constant_cost=0.0,
        per_entry=torch.zeros(len(layout.blocks), len(layout.sites), dtype=torch.float64),
        attention=of_blocks([(block.qkv, block.q) for block in layout.blocks]),
        mlp_read=of_blocks([block.num_input_projections for block in layout.blocks]),
        mlp_write=of_blocks([1.0] * len(layout.blocks)),
        heads=of_blocks([block.heads for block in layout.blocks]),
        full=of_blocks([block.lengths for block in layout.blocks]),
    )
    return replace(costs, dense_cost=float(costs.cost(torch.tensor(layout.lengths))))


def _times(factor: float, costs: CostModel) -> CostModel:
    names = (
        "constant_cost", "per_entry", "attention", "mlp_read", "mlp_write", "per_cut",
        "per_selected", "dense_cost",
    )  # fmt: skip
    return replace(costs, **{name: factor * getattr(costs, name) for name in names})


def flop_costs(layout: Layout, head_parameters: int) -> CostModel:
    """Floating-point operations for one token, two a weight, of the linear layers of the blocks and
    of the head; attention itself, which depends on the length and is not pruned, is left out."""
    weights = parameter_costs(layout)
    with_head = replace(
        weights,
        constant_cost=float(head_parameters),
        dense_cost=weights.dense_cost + head_parameters,
    )
    return _times(2.0, with_head)


def byte_costs(layout: Layout, parameters: int, itemsize: int) -> CostModel:
    """Bytes of all weights of the model, biases, embeddings and head included."""
    weights = parameter_costs(layout)
    biases = torch.tensor([block.biases for block in layout.blocks], dtype=torch.float64)
    in_blocks = weights.dense_cost + float((biases.flatten() * torch.tensor(layout.lengths)).sum())
    all_weights = replace(
        weights,
        constant_cost=parameters - in_blocks,
        per_entry=biases,
        dense_cost=float(parameters),
    )
    return _times(float(itemsize), all_weights)


def memory_costs(layout: Layout, parameters: int, itemsize: int, cached: list[int]) -> CostModel:
    """Bytes of all weights and of the keys and values of cached tokens.

    Args:
        cached: how many tokens each block holds, of all sequences together.
    """
    weights = byte_costs(layout, parameters, itemsize)
    tokens = torch.tensor(cached, dtype=torch.float64)
    of_token = torch.tensor([block.qkv - block.q for block in layout.blocks], dtype=torch.float64)
    cache = itemsize * tokens * of_token  # of each block
    per_entry, constant = weights.per_entry.clone(), weights.constant_cost
    if layout.blocks[0].heads:
        per_entry[:, -1] += cache / weights.heads
    else:
        constant += float(cache.sum())
    return replace(
        weights,
        constant_cost=constant,
        per_entry=per_entry,
        dense_cost=weights.dense_cost + float(cache.sum()),
    )
