"""Which multiple of widths is fastest on this machine.

N entries of all sites.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.evaluation.cache import alignment_table, keep
from disp_llm.evaluation.latency import ROUNDS
from disp_llm.evaluation.timing import Workload, paired
from disp_llm.export.cutting import compact_model
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout, usual_chunk
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.provenance import hardware

ALIGNMENTS = (1, 8, 16, 32, 64)
"""Multiples that widths may be rounded to, as `doctor --measure` tries them."""

WORTH_IT = 0.01
"""Share of the time that a coarser alignment must save: it leaves less freedom to choose."""


def measured_alignments(
    target: PrunableModel,
    workloads: tuple[Workload, ...],
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Times a model of half the block parameters for every alignment and workload.

    Times are shares of the dense model's; the fastest alignment is kept for `chosen_alignment`.
    Widths differ from site to site as learned ones do; entries are drawn at random.

    Args:
        on_model: called with (done, total) after every alignment.
    """
    layout = target.layout
    scores = uneven_scores(layout, torch.Generator().manual_seed(0))
    rows = []
    for done, align in enumerate(ALIGNMENTS, start=1):
        budget = Budget(layout, chunk=usual_chunk(layout, align))
        masks = Masks(layout, project(scores, budget, 0.5, align).kept, Selection(scores))
        compact = compact_model(target, masks)
        shares = {w.name: paired(target.model, compact, w, ROUNDS).share for w in workloads}
        rows.append({"align": align, "shares": shares})
        on_model(done, len(ALIGNMENTS))
    best = best_alignment(rows)
    for row in rows:
        row["best"] = row["align"] == best
    keep(alignment_table(target.model), {"align": best, "rows": rows, "hardware": hardware()})
    return rows


def uneven_scores(layout: Layout, noise: torch.Generator) -> Float[Tensor, " N"]:
    """Random scores whose masks differ in width from site to site, as learned ones do."""
    by_site = torch.randn(len(layout.lengths), generator=noise)[layout.site_of_entry] / 2
    return by_site + torch.randn(layout.entries, generator=noise)


def best_alignment(rows: list[dict[str, Any]]) -> int:
    """The fastest alignment on average over workloads, or a finer one that is hardly slower."""
    means = {row["align"]: statistics.mean(row["shares"].values()) for row in rows}
    fastest = min(means.values())
    return min(align for align, mean in means.items() if mean <= fastest * (1 + WORTH_IT))
