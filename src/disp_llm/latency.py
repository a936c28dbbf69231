"""Milliseconds as a budget: prices of widths, measured on this machine, and the last correction.

A few compact models of different shapes are timed against the dense one, in turn. Their times, as
shares of the dense time, are fitted by what budgets can count:

    share ≈ fixed + a·Σ|S1|·qkv + b·Σ|S2|·q + c·Σ pieces·|S3|·|S4| + d·Σ|S4|·|S5| + e·Σ selections

with all coefficients ≥ 0. The fit is kept in the user's cache: a table of this machine, model and
workload. Masks that were projected with these prices are then measured themselves, and the share is
corrected until the measured one is what was asked for.

L blocks, M measured shapes.
"""

import hashlib
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.bench import Work, in_turn, runner
from disp_llm.budget import Budget, Prices, parameter_prices, project
from disp_llm.config import InputError
from disp_llm.export import compact_model
from disp_llm.families import Family
from disp_llm.files import read_json, write_json
from disp_llm.masks import Choice, Layout, Masks
from disp_llm.runs import hardware, versions

SELECTED = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Sites whose entries are gathered or scattered."""

SHAPES = (
    (0.9, 0.9, 0.9, 0.9, 0.9),
    (0.7, 0.7, 0.7, 0.7, 0.7),
    (0.5, 0.5, 0.5, 0.5, 0.5),
    (0.3, 0.3, 0.3, 0.3, 0.3),
    (0.9, 0.9, 0.4, 0.4, 0.4),
    (0.3, 0.3, 0.8, 0.8, 0.8),
    (0.3, 0.9, 0.6, 0.6, 0.6),
    (0.9, 0.3, 0.6, 0.6, 0.6),
    (0.6, 0.6, 0.3, 0.6, 0.9),
    (0.6, 0.6, 0.9, 0.6, 0.3),
)
"""Shares of each site's entries in the compact models that are timed."""

ROUNDS = 9
"""Timings of each; the median counts."""

TOLERANCE = 0.02
"""How far from the asked share, relative to it, a measured one may be before it is corrected."""

CORRECTIONS = 6

MEASURED_AGAIN = "delete it; it is measured again"


ALIGNMENTS = (1, 8, 16, 32, 64)
"""Multiples that widths may be rounded to, as `doctor --measure` tries them."""

WORTH_IT = 0.01
"""A coarser alignment must save this share of the time: it costs freedom of choice."""


def cache_folder() -> Path:
    """Where measured tables are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disp-llm" / "latency"


def latency_prices(
    model: PreTrainedModel,
    family: Family,
    layout: Layout,
    work: Work,
    align: int,
    on_shape: Callable[[int, int], None] = lambda done, total: None,
) -> Prices:
    """Prices in shares of the dense model's time for `work`, from the cache or measured now."""
    path = cache_folder() / f"{_key(model, work.name, work.length, align)}.json"
    if path.exists():
        rows = read_json(path, MEASURED_AGAIN)["rows"]
    else:
        rows = []
        for done, shape in enumerate(SHAPES, start=1):
            masks = masks_of_shape(layout, shape, align)
            compact = compact_model(model, family, masks)
            share = measured_share(model, compact, work)
            rows.append({"counts": layout.counts(masks.kept.long()).tolist(), "share": share})
            on_shape(done, len(SHAPES))
        write_json(path, {"work": work.name, "hardware": hardware(), "rows": rows})
    counts = torch.tensor([row["counts"] for row in rows])
    return fit(layout, counts, torch.tensor([row["share"] for row in rows], dtype=torch.float64))


def measured_alignments(
    model: PreTrainedModel,
    family: Family,
    layout: Layout,
    works: tuple[Work, ...],
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The time of a model of half the block parameters, as a share of the dense one's, for every
    alignment and kind of work; the choice is remembered for `chosen_alignment`.

    Widths differ from site to site as learned ones do; entries are drawn at random.
    """
    noise = torch.Generator().manual_seed(0)
    uneven = torch.randn(len(layout.lengths), generator=noise)[layout.site_of_entry] / 2
    scores = uneven + torch.randn(layout.entries, generator=noise)
    rows = []
    for done, align in enumerate(ALIGNMENTS, start=1):
        masks = Masks(layout, project(scores, Budget(layout), 0.5, align).kept, Choice(scores))
        compact = compact_model(model, family, masks)
        shares = {work.name: measured_share(model, compact, work) for work in works}
        rows.append({"align": align, "shares": shares})
        on_model(done, len(ALIGNMENTS))
    best = best_alignment(rows)
    for row in rows:
        row["best"] = row["align"] == best
    write_json(_alignment_file(model), {"align": best, "rows": rows, "hardware": hardware()})
    return rows


def best_alignment(rows: list[dict[str, Any]]) -> int:
    """The fastest on average over kinds of work, but a finer one where it is hardly slower."""
    means = {row["align"]: statistics.mean(row["shares"].values()) for row in rows}
    fastest = min(means.values())
    return min(align for align, mean in means.items() if mean <= fastest * (1 + WORTH_IT))


def chosen_alignment(model: PreTrainedModel) -> int | None:
    """What `doctor --measure` found best for this model on this machine, if it was run."""
    path = _alignment_file(model)
    return read_json(path, MEASURED_AGAIN)["align"] if path.exists() else None


def _alignment_file(model: PreTrainedModel) -> Path:
    return cache_folder() / f"align-{_key(model)}.json"


def _key(model: PreTrainedModel, *more: object) -> str:
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
        share = (*shape, 1.0)[index % len(layout.sites)]
        wanted = round(share * len(part) / align) * align
        best = part.topk(min(max(wanted, align, 1), len(part))).indices
        layout.split(kept)[index][best] = True
    return Masks(layout, kept, Choice(noise))


def measured_share(
    dense: PreTrainedModel, compact: PreTrainedModel, work: Work, rounds: int = ROUNDS
) -> float:
    """The compact model's time as a share of the dense one's: median over rounds of their ratio."""
    times = in_turn([runner(model, work) for model in (dense, compact)], rounds)
    return statistics.median(second / first for first, second in zip(*times, strict=True))


def features(layout: Layout, counts: Tensor) -> Float[Tensor, "M 6"]:
    """What the coefficients multiply, of M sets of counts (M, S)."""
    widths = counts.double().view(len(counts), -1, len(layout.sites))  # (M, L, 5 or 6)
    s1, s2, s3, s4, s5 = widths[..., :5].unbind(-1)
    stays = torch.ones_like(s1)
    if layout.blocks[0].heads:
        stays = widths[..., 5] / widths.new_tensor([block.heads for block in layout.blocks])
    per_block = torch.tensor([(b.qkv, b.q, b.pieces) for b in layout.blocks], dtype=torch.float64)
    qkv, q, pieces = per_block.unbind(-1)
    columns = (s1 * qkv * stays, s2 * q * stays, pieces * s3 * s4, s4 * s5, s1 + s2 + s3 + s5)
    sums = torch.stack([column.sum(-1) for column in columns], -1)
    return torch.cat([torch.ones(len(counts), 1, dtype=torch.float64), sums], -1)


def fit(layout: Layout, counts: Tensor, shares: Float[Tensor, " M"]) -> Prices:
    """Least squares of relative errors with coefficients ≥ 0."""
    table = features(layout, counts)
    scale = table.amax(0)
    fixed, a, b, c, d, e = (non_negative(table / scale / shares[:, None]) / scale).tolist()
    prices = parameter_prices(layout)
    selected = torch.tensor([site in SELECTED for site in layout.sites], dtype=torch.float64)
    return replace(
        prices,
        fixed=fixed,
        own=e * selected.expand(len(layout.blocks), -1),
        attention=prices.attention * torch.tensor([a, b], dtype=torch.float64),
        read=c * prices.read,
        write=d * prices.write,
        whole=1.0,
    )


def non_negative(table: Float[Tensor, "M K"]) -> Float[Tensor, " K"]:
    """Least-squares solution ≥ 0 of `table @ x = 1` (Lawson and Hanson's active sets, the plain
    way: of all subsets of the few columns, the best whose solution is not negative)."""
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
    """A share for the projection whose measured share is the target, and the attempts.

    Args:
        measure: builds and times the model of a share of the prices' budget.
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
