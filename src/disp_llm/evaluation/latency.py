"""Latency budgets: costs of widths, fitted to times on this machine, and the final correction.

A few compact models of different shapes are timed alternately with the dense one. Their times, as
shares of the dense time, are fitted by terms that budgets can count (`latency_fit`). The user's
cache keeps the times in a table per machine, model and workload. Models projected with these costs
are then timed themselves, and the share is corrected until the measured one is the one asked for.
"""

import hashlib
import json
import logging
import os
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, HEADS, SITES, Site
from disp_llm.config.schema import Positive, as_type
from disp_llm.evaluation.latency_fit import fit
from disp_llm.evaluation.timing import IN_TRANSFORMERS, Stopwatch, Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget
from disp_llm.masks.costs import CostModel, weighted
from disp_llm.masks.layout import Layout, group_size
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.files import read_json, write_json
from disp_llm.runs.ownership import is_unused, mark
from disp_llm.runs.progress import Ticks, unwatched
from disp_llm.runs.provenance import hardware, versions

logger = logging.getLogger(__name__)

COLUMNS: tuple[Site, ...] = (*SITES, HEADS, *BRANCHES)
"""The site that each number of a shape is the share of."""

SHAPES = (
    # One branch alone: whole, and with one site cut at a time.
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
"""Shares of each site's entries that the timed compact models keep."""

ROUNDS = 7
"""Number of times that each model is timed."""

TOLERANCE = 0.02
"""Largest relative deviation of the measured share from the asked one that is not corrected."""

CORRECTIONS = 6
"""Most shares that are tried."""

IGNORED = "what was measured is not used"
"""Message about a damaged table."""


@dataclass(frozen=True)
class LatencyTable:
    """Times of all shapes of a model under a workload."""

    dense_s: Positive
    """Seconds of the dense model: the median over all rounds of all shapes."""
    shares: Annotated[list[Positive], Meta(min_length=1)]
    """Time of each shape as a share of the dense model's."""


def latency_costs(
    target: PrunableModel,
    workloads: Sequence[Workload],
    align: int,
    chunk: int = 1,
    on_shape: Ticks = unwatched,
    stopwatch: Stopwatch = IN_TRANSFORMERS,
) -> CostModel:
    """Returns costs in seconds for one workload; for several, the mean of their costs as shares of
    the dense model's time. Takes tables from the cache or measures them."""
    shapes, found = shapes_with(stopwatch.sites), []
    # Single branches are timed even if whole branches are not to be pruned.
    timed = replace(target, sites=tuple(dict.fromkeys((*target.sites, *BRANCHES))))
    layout = timed.layout
    masks = [masks_of_shape(layout, shape, align, chunk) for shape in shapes]
    whole = torch.tensor(layout.lengths)  # the dense model's share is 1 by definition
    counts = torch.stack([whole, *(one.counts for one in masks)])
    for number, workload in enumerate(workloads):
        depends_on = (asdict(workload), align, chunk, layout.sites, shapes)
        name = table_name(target.model, *depends_on, stopwatch.program, stopwatch.version)
        table = cached(name, len(shapes))
        if table is None:
            of_dense, times = [], []
            for done, shape in enumerate(masks, start=number * len(masks) + 1):
                pair = stopwatch.paired(timed.model, compact_model(timed, shape), workload, ROUNDS)
                of_dense += pair.first
                times.append(pair.least_share)
                on_shape(done, len(workloads) * len(masks))
            table = LatencyTable(statistics.median(of_dense), times)
            cache_table(name, {"workload": workload.name, "hardware": hardware()} | asdict(table))
        shares = torch.tensor([1.0, *table.shares], dtype=torch.float64)
        factor = table.dense_s if len(workloads) == 1 else 1 / len(workloads)
        found.append((factor, replace(fit(layout, counts, shares), layout=target.layout)))
    return weighted(*found)


def cache_folder() -> Path:
    """Folder of the measured tables."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disp-llm" / "latency"


def table_name(model: PreTrainedModel, *more: object) -> str:
    """File name of a table: a hash of everything that its times depend on."""
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    device = next(model.parameters()).device.type
    depends_on = [config, str(model.dtype), device, more, hardware(), versions()]
    described = json.dumps(depends_on, sort_keys=True, default=str)
    return f"{hashlib.sha256(described.encode()).hexdigest()[:24]}.json"


def cached(name: str, shapes: int) -> LatencyTable | None:
    """Returns the table of that name and number of shapes; None if there is no usable one."""
    try:
        path = cache_folder() / name
        if not path.is_file():
            return None
        table = as_type(read_json(path, IGNORED), LatencyTable, field=str(path), hint=IGNORED)
        if len(table.shares) != shapes:
            raise InputError(
                f"has {len(table.shares)} times, not {shapes}", field=str(path), hint=IGNORED
            )
        return table
    except (InputError, OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        logger.warning("%s", error)
        return None


def cache_table(name: str, table: dict[str, Any]) -> None:
    """Writes a table; if the cache cannot be written, warns, and the next run measures again."""
    try:
        folder = cache_folder()
        if is_unused(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark(folder, "cache")
        write_json(folder / name, table)
    except (InputError, OSError, RuntimeError) as error:
        logger.warning("%s; what was measured is not kept", error)


def shapes_with(runnable: Collection[Site]) -> list[tuple[float, ...]]:
    """Returns the distinct shapes that cut these sites alone and keep all others whole."""
    shapes = (
        tuple(
            share if site in runnable else 1.0 for site, share in zip(COLUMNS, shape, strict=True)
        )
        for shape in SHAPES
    )
    return list(dict.fromkeys(shapes))


def masks_of_shape(layout: Layout, shape: tuple[float, ...], align: int, chunk: int = 1) -> Masks:
    """Returns random masks that keep these shares of each site's entries, at least one group. Even
    a shape without attention keeps the attentions that are never pruned (`Budget.never_pruned`).

    Args:
        align: all widths are multiples of it.
        chunk: number of neighbours in the residual stream that are kept or pruned together.
    """
    shares: dict[str, float] = dict(zip(COLUMNS, shape, strict=True))
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
        ranked = part.argsort(descending=True, stable=True)  # stable, so that chunks stay together
        chosen[ranked[: max(wanted, of)]] = True
    return Masks(layout, layout.without_dropped(kept), Selection(noise))


def measured_time(
    dense: PreTrainedModel,
    compact: PreTrainedModel,
    workloads: Sequence[Workload],
    stopwatch: Stopwatch = IN_TRANSFORMERS,
) -> tuple[float, float]:
    """Returns the compact model's time as a share of the dense one's and in seconds, as means over
    the workloads."""
    pairs = [stopwatch.paired(dense, compact, workload, ROUNDS) for workload in workloads]
    seconds = (statistics.median(pair.second) for pair in pairs)
    return statistics.fmean(pair.share for pair in pairs), statistics.fmean(seconds)


def corrected(target: float, measure: Callable[[float], float]) -> tuple[float, list[Any]]:
    """Searches for the projected share whose measured share is the target. Returns the one that
    came nearest, and all attempts.

    Args:
        measure: makes and times the model of a share of the budget; returns its measured share.
    """
    share, attempts = target, []
    for _ in range(CORRECTIONS):
        try:
            found = measure(share)
        except InputError:  # no model is that small; the first share is the user's, so it raises
            if not attempts:
                raise
            break
        attempts.append({"share": share, "measured": found})
        if abs(found / target - 1) <= TOLERANCE:
            break
        share = share * target / found
    nearest = min(attempts, key=lambda attempt: abs(attempt["measured"] - target))
    return nearest["share"], attempts
