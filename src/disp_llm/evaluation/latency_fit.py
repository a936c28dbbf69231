"""Fits a cost model, the cost of every entry, to measured times of compact models.

Times, as shares of the dense model's, are fitted by terms that budgets can count:

    share ≈ constant + a·attentions + b·Σ h + c·Σ|S1|·qkv·h + d·Σ|S2|·q·h
            + e·MLPs + f·Σ|S4| + g·Σ n·|S3|·|S4| + i·Σ|S4|·|S5| + j·Σ selected + k·cut sites

with n the number of the MLP's input projections, h the kept share of a block's heads, and a
selection in every cut site of the residual stream. All coefficients are ≥ 0. Models with only
attentions or only MLPs separate the costs of the two branches. Budgets then cut a site only if
that saves more than its selection costs.

L blocks, M measured shapes, K sites of a block, S sites of all blocks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.config.names import ATTENTION, EXPERTS, HEADS, MLP
from disp_llm.masks.costs import CostModel, Terms, of_blocks, parameter_costs
from disp_llm.masks.layout import Layout


def features(layout: Layout, counts: Tensor) -> Float[Tensor, "M 11"]:
    """Regressors, one per coefficient, for M sets of counts (M, S)."""
    widths = counts.double().view(len(counts), len(layout.blocks), -1)  # (M, L, K)
    s1, s2, s3, s4, s5 = widths[..., :5].unbind(-1)
    qkv, q, n, hidden, heads = (
        of_blocks([getattr(block, name) for block in layout.blocks])
        for name in ("qkv", "q", "num_input_projections", "hidden", "heads")
    )
    # A site in a pruned branch has width 0.
    attention, mlp = (s1 > 0).double(), (s3 > 0).double()
    kept_heads = attention
    if HEADS in layout.sites:
        kept_heads = widths[..., layout.sites.index(HEADS)] / heads
    streams = torch.stack([s1, s2, s3, s5], -1)
    cut = (streams < hidden[:, None]) & (streams > 0)
    columns = (
        attention,
        kept_heads,
        s1 * qkv * kept_heads,
        s2 * q * kept_heads,
        mlp,
        s4,
        n * s3 * s4,
        s4 * s5,
        (streams * cut).sum(-1),
        cut.double().sum(-1),
    )
    sums = torch.stack([column.sum(-1) for column in columns], -1)
    return torch.cat([torch.ones(len(counts), 1, dtype=torch.float64), sums], -1)


def fit(layout: Layout, counts: Tensor, shares: Float[Tensor, " M"]) -> CostModel:
    """Minimises the squared relative errors with coefficients ≥ 0 (non-negative least squares)."""
    from scipy.optimize import nnls

    table = features(layout, counts)
    if HEADS not in layout.sites:
        table[:, 2] = 0.0  # all heads stay, so their cost is part of an attention's
    largest = table.amax(0)
    scale = torch.where(largest > 0, largest, 1.0)
    found, _ = nnls((table / scale / shares[:, None]).numpy(), [1.0] * len(table))
    coefficients = (found / scale.numpy()).tolist()
    constant, attention, heads, read, write, mlp, middle, up, down, *per_cut_site = coefficients
    per_selected, per_cut = per_cut_site
    weights, each = parameter_costs(layout).terms, torch.ones(len(layout.blocks)).double()
    terms: Terms = {
        (ATTENTION,): attention * each,
        (HEADS,): heads * each,
        ("attn_in", HEADS): read * weights["attn_in", HEADS],
        ("attn_out", HEADS): write * weights["attn_out", HEADS],
        (MLP,): mlp * each,
        ("mlp_mid",): middle * each,
        ("mlp_in", "mlp_mid", EXPERTS): up * weights["mlp_in", "mlp_mid", EXPERTS],
        ("mlp_mid", "mlp_out", EXPERTS): down * weights["mlp_mid", "mlp_out", EXPERTS],
    }
    return CostModel(layout, terms, constant, per_cut, per_selected, dense_cost=1.0)
