"""Milliseconds as a budget: costs of widths, measured on this machine, and the last correction.

A few compact models of different shapes are timed against the dense one, in turn. Their times, as
shares of the dense time, are fitted by what budgets can count (`latency_fit`); they are kept in the
user's cache: a table of this machine, model and workload. Masks that were projected with these
costs are then measured themselves, and the share is corrected until the measured one is what was
asked for.

M measured shapes.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from msgspec import Meta
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, HEADS, SITES
from disp_llm.config.schema import Count, Positive
from disp_llm.evaluation.cache import IGNORED, cache_folder, cached, keep, table_key
from disp_llm.evaluation.latency_fit import fit
from disp_llm.evaluation.timing import Workload, paired
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget
from disp_llm.masks.costs import CostModel, weighted
from disp_llm.masks.layout import Layout, group_size
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.provenance import hardware

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

    dense_s: Positive
    """The dense model's time, the median over all rounds of all shapes."""
    rows: Annotated[list[TimedShape], Meta(min_length=len(SHAPES), max_length=len(SHAPES))]


def latency_costs(
    target: PrunableModel,
    workloads: Sequence[Workload],
    align: int,
    chunk: int = 1,
    on_shape: Callable[[int, int], None] = lambda done, total: None,
) -> CostModel:
    """Costs in seconds of a workload, from the cache or measured now; of several, the mean of their
    shares of the dense model's time.

    Args:
        align: widths are multiples of it.
        chunk: neighbours in the residual stream that stay together.
        on_shape: called with (done, total) after every compact model that is timed.
    """
    total, found = len(workloads) * len(SHAPES), []
    for number, workload in enumerate(workloads):
        tick = partial(_tick, on_shape, number * len(SHAPES), total)
        found.append(_costs_of(target, workload, align, chunk, tick))
    if len(found) == 1:
        return weighted(*found)
    return weighted(*((1 / len(found), shares) for _, shares in found))


def _tick(on_shape: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_shape(before + done, total)


def _costs_of(
    target: PrunableModel,
    workload: Workload,
    align: int,
    chunk: int,
    on_shape: Callable[[int], None],
) -> tuple[float, CostModel]:
    """The dense model's seconds for one workload, and costs as shares of them."""
    # Branches are timed by themselves also where none is to be pruned.
    timed = replace(target, sites=tuple(dict.fromkeys((*target.sites, *BRANCHES))))
    layout = timed.layout
    name = f"{table_key(target.model, asdict(workload), align, chunk, layout.sites)}.json"
    found: LatencyTable | None = cached(name, LatencyTable)
    if found and not all(_fits(row, layout) for row in found.rows):
        logger.warning("%s: is of another model; %s", cache_folder() / name, IGNORED)
        found = None
    if found is None:
        rows, of_dense = [], []
        for done, shape in enumerate(SHAPES, start=1):
            masks = masks_of_shape(layout, shape, align, chunk)
            pair = paired(target.model, compact_model(timed, masks), workload, ROUNDS)
            rows.append(TimedShape(masks.counts.tolist(), pair.least_share))
            of_dense += pair.first
            on_shape(done)
        found = LatencyTable(statistics.median(of_dense), rows)
        keep(name, {"workload": workload.name, "hardware": hardware()} | asdict(found))
    whole = TimedShape(list(layout.lengths), 1.0)  # known without a watch
    counts = torch.tensor([row.counts for row in (whole, *found.rows)])
    shares = torch.tensor([row.share for row in (whole, *found.rows)], dtype=torch.float64)
    return found.dense_s, replace(fit(layout, counts, shares), layout=target.layout)


def _fits(row: TimedShape, layout: Layout) -> bool:
    """Whether these are widths that the model can have."""
    lengths = layout.lengths
    pairs = zip(row.counts, lengths, strict=False)
    return len(row.counts) == len(lengths) and all(count <= length for count, length in pairs)


def masks_of_shape(layout: Layout, shape: tuple[float, ...], align: int, chunk: int = 1) -> Masks:
    """Random masks that keep these shares of the entries of each site; of the attention of a model
    that has none, the first of each kind stays.

    Args:
        align: widths are multiples of it.
        chunk: neighbours in the residual stream that stay together.
    """
    shares: dict[str, float] = dict(zip((*SITES, HEADS, *BRANCHES), shape, strict=True))
    noise = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    noise = layout.by_chunks(noise, chunk)
    kept = Budget(layout, sites=layout.sites).never_pruned.clone()
    for name, part, chosen in zip(
        layout.names, layout.split(noise), layout.split(kept), strict=True
    ):
        site = name.rpartition(".")[2]
        if site in BRANCHES:
            chosen |= bool(shares[site])
            continue
        of = group_size(site, align, chunk)
        wanted = round(shares[site] * len(part) / of) * of
        ranked = part.argsort(descending=True, stable=True)  # so that no chunk is divided
        chosen[ranked[: max(wanted, of)]] = True
    return Masks(layout, layout.without_dropped(kept), Selection(noise))


def measured_time(
    dense: PreTrainedModel, compact: PreTrainedModel, workloads: Sequence[Workload]
) -> tuple[float, float]:
    """The compact model's time as a share of the dense one's, and in seconds: means over the
    workloads."""
    pairs = [paired(dense, compact, workload, ROUNDS) for workload in workloads]
    seconds = (statistics.median(pair.second) for pair in pairs)
    return statistics.fmean(pair.share for pair in pairs), statistics.fmean(seconds)


def corrected(target: float, measure: Callable[[float], float]) -> tuple[float, list[Any]]:
    """The share for the projection whose measured share is the target, and all attempts.

    Args:
        measure: makes and times the model of a share of the costs' budget.
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
