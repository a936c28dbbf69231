"""Milliseconds as a budget: costs of widths, measured on this machine, and the last correction.

A few compact models of different shapes are timed against the dense one, in turn. Their times, as
shares of the dense time, are fitted by what budgets can count:

    share ≈ constant + a·Σ|S1|·qkv·h + b·Σ|S2|·q·h + c·Σ n·|S3|·|S4| + d·Σ|S4|·|S5|
            + e·Σ selected + f·cut sites + g·Σ h

for n projections that read for the MLP, h the share of a block's heads that is kept, and a
selection in every site of the residual stream that is cut, with all coefficients ≥ 0. A site is cut
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
from disp_llm.config.names import HEADS
from disp_llm.config.schema import Positive, Size
from disp_llm.evaluation.cache import IGNORED, cache_folder, cached, keep
from disp_llm.evaluation.timing import Workload, in_turn, runner
from disp_llm.export.cutting import compact_model
from disp_llm.masks.costs import CostModel, parameter_costs
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.provenance import hardware, versions

logger = logging.getLogger(__name__)

SHAPES = (
    (0.8, 0.8, 0.8, 0.8, 0.8, 1.0),
    (0.4, 0.4, 0.4, 0.4, 0.4, 1.0),
    (0.9, 0.9, 0.4, 0.4, 0.4, 1.0),
    (0.3, 0.9, 0.6, 0.6, 0.6, 1.0),
    (0.9, 0.3, 0.6, 0.6, 0.6, 0.6),
    (0.6, 0.6, 0.3, 0.6, 0.9, 1.0),
    (0.6, 0.6, 0.9, 0.6, 0.3, 1.0),
    (0.5, 1.0, 1.0, 0.7, 1.0, 1.0),
    (1.0, 0.5, 1.0, 0.7, 1.0, 1.0),
    (1.0, 1.0, 0.5, 0.7, 0.5, 1.0),
    (1.0, 1.0, 1.0, 0.7, 1.0, 1.0),
    (1.0, 1.0, 1.0, 0.4, 1.0, 1.0),
    (1.0, 1.0, 1.0, 0.1, 1.0, 0.6),
    (1.0, 1.0, 1.0, 0.6, 1.0, 0.6),
    (1.0, 1.0, 1.0, 0.5, 1.0, 0.3),
)
"""Shares of each site's entries that are kept in the compact models that are timed; the last is
that of KV heads, where they are a site."""

ROUNDS = 9
"""How often each model is timed; the median counts."""

TOLERANCE = 0.02
"""How far from the asked share, relative to it, a measured one may be before it is corrected."""

CORRECTIONS = 6
"""How many shares are tried at most."""


@dataclass(frozen=True)
class TimedShape:
    """One compact model that was timed."""

    counts: list[Size]
    """Widths of all sites."""
    share: Positive
    """Its time as a share of the dense model's."""


@dataclass(frozen=True)
class LatencyTable:
    """All shapes of a model under a workload."""

    rows: Annotated[list[TimedShape], Meta(min_length=len(SHAPES), max_length=len(SHAPES))]


def latency_costs(
    target: PrunableModel,
    workload: Workload,
    align: int,
    on_shape: Callable[[int, int], None] = lambda done, total: None,
) -> CostModel:
    """Costs as shares of the dense model's time for a workload, from the cache or measured now.

    Args:
        on_shape: called with (done, total) after every compact model that is timed.
    """
    layout = target.layout
    name = f"{table_key(target.model, asdict(workload), align)}.json"
    found: LatencyTable | None = cached(name, LatencyTable)
    rows = found.rows if found else []
    if not all(_fits(row, layout) for row in rows):
        logger.warning("%s: is of another model; %s", cache_folder() / name, IGNORED)
        rows = []
    if not rows:
        for done, shape in enumerate(SHAPES, start=1):
            masks = masks_of_shape(layout, shape, align)
            share = measured_share(target.model, compact_model(target, masks), workload)
            rows.append(TimedShape(masks.counts.tolist(), share))
            on_shape(done, len(SHAPES))
        told = {"workload": workload.name, "hardware": hardware()}
        keep(name, told | {"rows": [asdict(row) for row in rows]})
    counts = torch.tensor([row.counts for row in rows])
    return fit(layout, counts, torch.tensor([row.share for row in rows], dtype=torch.float64))


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
    """Random masks that keep these shares of the entries of each site."""
    noise = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(layout.entries, dtype=torch.bool)
    for index, part in enumerate(layout.split(noise)):
        place = index % len(layout.sites)
        of = 1 if layout.sites[place] == HEADS else align  # heads are no width
        wanted = round(shape[place] * len(part) / of) * of
        best = part.topk(min(max(wanted, of), len(part))).indices
        layout.split(kept)[index][best] = True
    return Masks(layout, kept, Selection(noise))


def measured_share(
    dense: PreTrainedModel, compact: PreTrainedModel, workload: Workload, rounds: int = ROUNDS
) -> float:
    """The compact model's time as a share of the dense one's: median over rounds of their ratio."""
    times = in_turn([runner(model, workload) for model in (dense, compact)], rounds)
    return statistics.median(second / first for first, second in zip(*times, strict=True))


def features(layout: Layout, counts: Tensor) -> Float[Tensor, "M 8"]:
    """What the coefficients multiply, for M sets of counts (M, S)."""
    widths = counts.double().view(len(counts), -1, len(layout.sites))  # (M, L, 5 or 6)
    s1, s2, s3, s4, s5 = widths[..., :5].unbind(-1)
    kept_heads = torch.ones_like(s1)
    attention = torch.zeros_like(s1)  # without heads among the sites it is part of the constant
    if layout.blocks[0].heads:
        attention = kept_heads = widths[..., 5] / widths.new_tensor(
            [block.heads for block in layout.blocks]
        )
    per_block = torch.tensor(
        [(b.qkv, b.q, b.num_input_projections) for b in layout.blocks], dtype=torch.float64
    )
    qkv, q, n = per_block.unbind(-1)
    hidden = torch.tensor([block.hidden for block in layout.blocks], dtype=torch.float64)
    streams = torch.stack([s1, s2, s3, s5], -1)
    cut = streams < hidden[:, None]
    columns = (
        s1 * qkv * kept_heads,
        s2 * q * kept_heads,
        n * s3 * s4,
        s4 * s5,
        (streams * cut).sum(-1),
        cut.double().sum(-1),
        attention,
    )
    sums = torch.stack([column.sum(-1) for column in columns], -1)
    return torch.cat([torch.ones(len(counts), 1, dtype=torch.float64), sums], -1)


def fit(layout: Layout, counts: Tensor, shares: Float[Tensor, " M"]) -> CostModel:
    """Least squares of relative errors with coefficients ≥ 0."""
    table = features(layout, counts)
    largest = table.amax(0)
    scale = torch.where(largest > 0, largest, 1.0)  # no heads among the sites: a column of zeros
    found = (non_negative(table / scale / shares[:, None]) / scale).tolist()
    constant, a, b, c, d, per_selected, per_cut, of_heads = found
    costs = parameter_costs(layout)
    per_head = torch.tensor([site == HEADS for site in layout.sites], dtype=torch.float64)
    return replace(
        costs,
        constant_cost=constant,
        per_entry=of_heads * per_head / costs.heads.clamp(min=1)[:, None],
        per_selected=per_selected,
        per_cut=per_cut,
        attention=costs.attention * torch.tensor([a, b], dtype=torch.float64),
        mlp_read=c * costs.mlp_read,
        mlp_write=d * costs.mlp_write,
        dense_cost=1.0,
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
