"""Budgets other than block parameters: what they count, sizes stated as amounts of it, and masks
whose model is timed."""

import logging
from dataclasses import replace
from typing import Any

import torch

from disp_llm.commands.engines import stopwatch_of
from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target, fits_already
from disp_llm.evaluation.latency import TOLERANCE, corrected, latency_costs, measured_time
from disp_llm.evaluation.timing import Stopwatch, Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget, TooSmall, project
from disp_llm.masks.costs import (
    CostModel,
    active_costs,
    byte_costs,
    flop_costs,
    memory_costs,
)
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.kv_cache import cached_tokens
from disp_llm.models.windows import require_positions
from disp_llm.runs.job import Job
from disp_llm.runs.results import Timing
from disp_llm.training.problem import PruningProblem

logger = logging.getLogger(__name__)


def with_costs(
    budget: Budget, job: Job[PruneConfig], dense: PrunableModel, align: int, tokenizer: Any
) -> Budget:
    """Returns the budget with the costs that the settings name; for latency, times compact models
    first."""
    settings = job.config.budget
    if settings.kind == "latency":
        costs = _timed(job, dense, align, budget.chunk, stopwatch_of(job.config, dense, tokenizer))
    else:
        costs = _counted(settings, dense)
    return replace(budget, costs=costs)


def _counted(settings: BudgetConfig, dense: PrunableModel) -> CostModel:
    """Returns costs that need no measurement."""
    layout, parameters = dense.layout, dense.parameters
    itemsize = dense.head_weight.element_size()
    match settings.kind:
        case "flops":
            return flop_costs(layout, dense.head_weight.numel())
        case "total":
            return byte_costs(layout, parameters, 1)
        case "bytes":
            return byte_costs(layout, parameters, itemsize)
        case "memory":
            length, batch = settings.workload_length, settings.workload_batch
            require_positions(dense.model, length, "workload_length")
            cached = cached_tokens(dense.model, length, batch)
            return memory_costs(layout, parameters, itemsize, cached)
    return active_costs(layout)


def _timed(
    job: Job[PruneConfig], dense: PrunableModel, align: int, chunk: int, stopwatch: Stopwatch
) -> CostModel:
    settings = job.config.budget
    if dense.layout.has_experts:
        raise InputError(
            "cannot be foretold of a mixture of experts",
            field="budget",
            hint="give active, which counts what a token uses",
        )
    # A default that is too long is not shortened: the name of a size states the length.
    decoded = "decode" in settings.workload  # a step reads one token after the cached ones
    require_positions(dense.model, settings.workload_length + decoded, "workload_length")
    progress = job.count("timing compact models")
    return latency_costs(dense, _workloads(settings), align, chunk, progress, stopwatch)


def _workloads(settings: BudgetConfig) -> list[Workload]:
    """Returns the workloads that a latency budget times."""
    length, batch = settings.workload_length, settings.workload_batch
    return [Workload(phase, length, batch) for phase in settings.workload]


def require_smaller(problem: PruningProblem) -> None:
    """Refuses amounts that the original already fits in."""
    for size, share in zip(problem.job.config.sizes, problem.keeps, strict=True):
        if size.unit and share >= 1:
            raise fits_already(size, size.like(problem.budget.dense_cost))


def require_room(problem: PruningProblem) -> None:
    """Refuses sizes below the smallest model."""
    budget = problem.budget
    for size, share in zip(problem.job.config.sizes, problem.keeps, strict=True):
        try:
            project(torch.zeros(budget.layout.entries), budget, share, problem.align)
        except TooSmall as error:
            if not size.unit:
                raise
            least = size.like(error.least * budget.dense_cost, at_least=True)
            raise InputError(
                f"{size} is less than the smallest model, {least}",
                field="fit",
                hint=f"ask for {least} or more",
            ) from error


def masks_in_time(
    problem: PruningProblem, selection: Selection, size: Target, stopwatch: Stopwatch
) -> tuple[Masks, Timing]:
    """Returns masks whose compact model takes the asked share of the dense one's measured time."""
    job, target = problem.job, problem.budget.share_of(size)
    workloads, stage = _workloads(job.config.budget), f"latency {size.name}: measuring"
    seconds: dict[float, float] = {}

    def measure(share: float) -> float:
        job.progress(stage, 0, 1, {})
        compact = compact_model(problem.dense, problem.masks(selection, share))
        found, seconds[share] = measured_time(problem.dense.model, compact, workloads, stopwatch)
        return found

    share, attempts = corrected(target, measure)
    job.progress(stage, 1, 1, {})
    measured = next(a["measured"] for a in attempts if a["share"] == share)
    if abs(measured / target - 1) > TOLERANCE:
        logger.warning(
            "asked for %.1f %% of the time, the nearest of %d tries takes %.1f %%",
            100 * target, len(attempts), 100 * measured,
        )  # fmt: skip
    timing: Timing = {
        "work": " and ".join(workload.name for workload in workloads),
        "program": stopwatch.program,
        "measured_share": measured,
        "measured_ms": 1e3 * seconds[share],
        "attempts": attempts,
    }
    return problem.masks(selection, share), timing
