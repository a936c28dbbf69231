"""Milliseconds as a budget: costs of widths, measured on this machine, and the last correction.

A few compact models of different shapes are timed against the dense one, in turn. Their times, as
shares of the dense time, are fitted by what budgets can count:

    share ≈ constant + a·attentions + b·Σ h + c·Σ|S1|·qkv·h + d·Σ|S2|·q·h
            + e·MLPs + f·Σ|S4| + g·Σ n·|S3|·|S4| + i·Σ|S4|·|S5| + j·Σ selected + k·cut sites

for n projections that read for the MLP, h the share of a block's heads that is kept, and a
selection in every site of the residual stream that is cut, with all coefficients ≥ 0. Models that
have only their attentions, or only their MLPs, tell apart what the two branches take. A site is cut
only where that saves more than its selection takes. The fit is kept in the user's cache: a table of
this machine, model and workload. Masks that were projected with these costs are
then measured themselves, and the share is corrected until the measured one is what was asked for.

L blocks, M measured shapes.
"""

import hashlib
import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, BRANCHES, HEADS, MLP, SITES
from disp_llm.config.schema import Count, Positive
from disp_llm.evaluation.cache import IGNORED, cache_folder, cached, keep
from disp_llm.evaluation.timing import Mix, Workload, in_turn, runner
from disp_llm.export.cutting import compact_model
from disp_llm.masks.budget import Budget
from disp_llm.masks.costs import CostModel, of_blocks, parameter_costs, weighted
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.provenance import hardware, versions

logger = logging.getLogger(__name__)

SHAPES = (
    # Branches by themselves: whole, and with one thing cut at a time.
    (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 0.0),
    (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0),
    (1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.0, 1.0),
    (1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0),
    (1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0),
    # Whole models.
    (0.8, 0.8, 0.8, 0.8, 0.8, 1.0, 1.0, 1.0),
    (0.4, 0.4, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0),
    (0.9, 0.9, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0),
    (0.3, 0.9, 0.6, 0.6, 0.6, 1.0, 1.0, 1.0),
    (0.9, 0.3, 0.6, 0.6, 0.6, 0.6, 1.0, 1.0),
    (0.6, 0.6, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0),
    (0.6, 0.6, 0.9, 0.6, 0.3, 1.0, 1.0, 1.0),
    (1.0, 1.0, 1.0, 0.7, 1.0, 1.0, 1.0, 1.0),
    (1.0, 1.0, 1.0, 0.4, 1.0, 0.6, 1.0, 1.0),
    (1.0, 1.0, 1.0, 0.1, 1.0, 0.3, 1.0, 1.0),
)
"""Shares of each site's entries that are kept in the compact models that are timed: the five sites,
KV heads where they are a site, and whether blocks have attention and MLP."""

ROUNDS = 7
"""How often each model is timed."""

TOLERANCE = 0.02
"""How far from the asked share, relative to it, a measured one may be before it is corrected."""

CORRECTIONS = 6
"""How many shares are tried at most."""


@dataclass(frozen=True)
class TimedShape:
    """One compact model that was timed."""

    counts: list[Count]
    """Widths of all sites."""
    share: Positive
    """Its time as a share of the dense model's."""


@dataclass(frozen=True)
class LatencyTable:
    """All shapes of a model under a workload."""

    rows: Annotated[list[TimedShape], Meta(min_length=len(SHAPES), max_length=len(SHAPES))]


def latency_costs(
    target: PrunableModel,
    mix: Mix,
    align: int,
    on_shape: Callable[[int, int], None] = lambda done, total: None,
) -> CostModel:
    """Costs as shares of the dense model's time for a mix of workloads, from the cache or measured
    now.

    Args:
        on_shape: called with (done, total) after every compact model that is timed.
    """
    parts = []
    for number, workload in enumerate(mix.workloads):
        before, total = number * len(SHAPES), len(mix.workloads) * len(SHAPES)

        def tick(done: int, before: int = before, total: int = total) -> None:
            on_shape(before + done, total)

        parts.append(_costs_of(target, workload, align, tick))
    return weighted(*zip(mix.weights, parts, strict=True))


def _costs_of(
    target: PrunableModel, workload: Workload, align: int, on_shape: Callable[[int], None]
) -> CostModel:
    """The same for one workload."""
    # Branches are timed by themselves also where none is to be pruned.
    timed = replace(target, sites=tuple(dict.fromkeys((*target.sites, *BRANCHES))))
    layout = timed.layout
    name = f"{table_key(target.model, asdict(workload), align, layout.sites)}.json"
    found: LatencyTable | None = cached(name, LatencyTable)
    rows = found.rows if found else []
    if not all(_fits(row, layout) for row in rows):
        logger.warning("%s: is of another model; %s", cache_folder() / name, IGNORED)
        rows = []
    if not rows:
        for done, shape in enumerate(SHAPES, start=1):
            masks = masks_of_shape(layout, shape, align)
            share = least_share(target.model, compact_model(timed, masks), workload)
            rows.append(TimedShape(masks.counts.tolist(), share))
            on_shape(done)
        told = {"workload": workload.name, "hardware": hardware()}
        keep(name, told | {"rows": [asdict(row) for row in rows]})
    whole = TimedShape(list(layout.lengths), 1.0)  # known without a watch
    counts = torch.tensor([row.counts for row in (whole, *rows)])
    shares = torch.tensor([row.share for row in (whole, *rows)], dtype=torch.float64)
    return for_sites(fit(layout, counts, shares), target.layout)


def _fits(row: TimedShape, layout: Layout) -> bool:
    """Whether these are widths that the model can have."""
    lengths = layout.lengths
    pairs = zip(row.counts, lengths, strict=False)
    return len(row.counts) == len(lengths) and all(count <= length for count, length in pairs)


def table_key(model: PreTrainedModel, *more: object) -> str:
    """Names a table by everything that its times depend on."""
    described = json.dumps(
        [
            {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")},
            str(model.dtype),
            next(model.parameters()).device.type,
            more,
            hardware(),
            versions(),
        ],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def masks_of_shape(layout: Layout, shape: tuple[float, ...], align: int) -> Masks:
    """Random masks that keep these shares of the entries of each site; of the attention of a model
    that has none, the first of each kind stays."""
    shares: dict[str, float] = dict(zip((*SITES, HEADS, *BRANCHES), shape, strict=True))
    noise = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    kept = Budget(layout, sites=layout.sites).never_pruned.clone()
    for name, part, chosen in zip(
        layout.names, layout.split(noise), layout.split(kept), strict=True
    ):
        site = name.rpartition(".")[2]
        if site in BRANCHES:
            chosen |= bool(shares[site])
            continue
        of = 1 if site == HEADS else align  # heads are no width
        wanted = round(shares[site] * len(part) / of) * of
        chosen[part.topk(min(max(wanted, of), len(part))).indices] = True
    return Masks(layout, layout.without_dropped(kept), Selection(noise))


def measured_share(
    dense: PreTrainedModel, compact: PreTrainedModel, workload: Workload, rounds: int = ROUNDS
) -> float:
    """The compact model's time as a share of the dense one's: median over rounds of their ratio."""
    times = in_turn([runner(model, workload) for model in (dense, compact)], rounds)
    return statistics.median(second / first for first, second in zip(*times, strict=True))


def least_share(dense: PreTrainedModel, compact: PreTrainedModel, workload: Workload) -> float:
    """The same of the fastest rounds: whatever else runs on the machine only makes times longer,
    and a fit suffers from one shape that it made twice as slow."""
    own, of_compact = in_turn([runner(model, workload) for model in (dense, compact)], ROUNDS)
    return min(of_compact) / min(own)


def measured_share_of_mix(dense: PreTrainedModel, compact: PreTrainedModel, mix: Mix) -> float:
    """The same for several workloads."""
    pairs = zip(mix.weights, mix.workloads, strict=True)
    return sum(weight * measured_share(dense, compact, workload) for weight, workload in pairs)


def features(layout: Layout, counts: Tensor) -> Float[Tensor, "M 11"]:
    """What the coefficients multiply, for M sets of counts (M, S)."""
    widths = counts.double().view(len(counts), len(layout.blocks), -1)  # (M, L, K)
    s1, s2, s3, s4, s5 = widths[..., :5].unbind(-1)
    qkv, q, n, hidden, heads = (
        of_blocks([getattr(block, name) for block in layout.blocks])
        for name in ("qkv", "q", "num_input_projections", "hidden", "heads")
    )
    # What is pruned with its branch has no width.
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
    """Least squares of relative errors with coefficients ≥ 0."""
    table = features(layout, counts)
    if HEADS not in layout.sites:
        table[:, 2] = 0.0  # what all attentions have is part of what an attention costs
    largest = table.amax(0)
    scale = torch.where(largest > 0, largest, 1.0)
    found = (non_negative(table / scale / shares[:, None]) / scale).tolist()
    constant, attention, heads, read, write, mlp, middle, up, down, per_selected, per_cut = found
    costs = parameter_costs(layout)
    per_entry = costs.per_entry.clone()
    prices = {ATTENTION: attention, MLP: mlp, "mlp_mid": middle}
    for place, site in enumerate(layout.sites):
        per_entry[:, place] = prices.get(site, 0.0)
    if HEADS in layout.sites:
        of_head = heads / of_blocks([block.heads for block in layout.blocks])
        per_entry[:, layout.sites.index(HEADS)] = of_head
    return replace(
        costs,
        constant_cost=constant,
        per_entry=per_entry,
        per_selected=per_selected,
        per_cut=per_cut,
        attention=costs.attention * torch.tensor([read, write], dtype=torch.float64),
        mlp_read=up * costs.mlp_read,
        mlp_write=down * costs.mlp_write,
        dense_cost=1.0,
    )


def for_sites(costs: CostModel, layout: Layout) -> CostModel:
    """The same costs where branches are no sites, so that all of them are there."""
    if layout.sites == costs.layout.sites:
        return costs
    always = costs.per_entry[:, len(layout.sites) :].sum()
    return replace(
        costs,
        layout=layout,
        constant_cost=costs.constant_cost + float(always),
        per_entry=costs.per_entry[:, : len(layout.sites)],
    )


def non_negative(table: Float[Tensor, "M K"]) -> Float[Tensor, " K"]:
    """The least-squares solution ≥ 0 of `table @ x = 1`: of all subsets of the few columns, the
    best whose solution is not negative."""
    columns = table.shape[1]
    best, error = torch.zeros(columns, dtype=table.dtype), float("inf")
    ones = torch.ones(len(table), dtype=table.dtype)
    for subset in range(1, 2**columns):
        used = [k for k in range(columns) if subset >> k & 1]
        solution = torch.linalg.lstsq(table[:, used], ones).solution
        residual = float((table[:, used] @ solution - ones).square().sum())
        if (solution >= 0).all() and residual < error:
            best, error = torch.zeros_like(best), residual
            best[used] = solution
    return best


def corrected(target: float, measure: Callable[[float], float]) -> tuple[float, list[Any]]:
    """The share for the projection whose measured share is the target, and all attempts.

    Args:
        measure: makes and times the model of a share of the costs' budget.

    Raises:
        InputError: no model is as small as the target.
    """
    share, attempts = target, []
    for _ in range(CORRECTIONS):
        try:
            found = measure(share)
        except InputError:  # no model is that small; the first share is the user's own
            if not attempts:
                raise
            break
        attempts.append({"share": share, "measured": found})
        if abs(found / target - 1) <= TOLERANCE:
            break
        share = share * target / found
    nearest = min(attempts, key=lambda attempt: abs(attempt["measured"] - target))
    return nearest["share"], attempts
