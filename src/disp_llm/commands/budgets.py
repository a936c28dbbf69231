"""What the budget of a run counts, and its sizes as shares of what the original has of that."""

import torch

from disp_llm.commands.sizes import timed_workloads
from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target
from disp_llm.masks.budget import Budget, TooSmall, project
from disp_llm.masks.costs import (
    CostModel,
    active_costs,
    byte_costs,
    flop_costs,
    memory_costs,
)
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_positions
from disp_llm.runs.job import Job


def budget_of(job: Job[PruneConfig], dense: PrunableModel, align: int, chunk: int) -> Budget:
    """Counts what the settings name; times compact models first where that is latency."""
    config, settings, layout = job.config, job.config.budget, dense.layout
    if settings.budget == "latency":
        costs = _timed_costs(job, dense, align, chunk)
    else:
        costs = counted_costs(settings, dense, dense.head_weight.element_size())
    budget = Budget(layout, costs, dense.sites, config.uniform, config.least_cut, chunk)
    if costs is not None and settings.budget == "total":
        _require_room_for_blocks(budget, costs.constant, config.sizes)
    return budget


def counted_costs(settings: BudgetConfig, dense: PrunableModel, itemsize: int) -> CostModel | None:
    """What a budget that nothing is measured for counts; None for block parameters.

    Args:
        dense: the model, which may be empty.
        itemsize: bytes of a number of the model.
    """
    layout, parameters = dense.layout, dense.parameters
    match settings.budget:
        case "flops":
            return flop_costs(layout, dense.head_weight.numel())
        case "total":
            return byte_costs(layout, parameters, 1)
        case "bytes":
            return byte_costs(layout, parameters, itemsize)
        case "memory":
            length, batch = settings.workload_length, settings.workload_batch
            require_positions(dense.model, length, "workload_length")
            from disp_llm.models.kv_cache import cached_tokens

            cached = cached_tokens(dense.model, length, batch)
            return memory_costs(layout, parameters, itemsize, cached)
        case "active":
            return active_costs(layout)
    return None


def _timed_costs(job: Job[PruneConfig], dense: PrunableModel, align: int, chunk: int) -> CostModel:
    settings = job.config.budget
    if dense.layout.has_experts:
        raise InputError(
            "cannot be foretold of a mixture of experts",
            field="budget",
            hint="give active, which counts what a token uses",
        )
    # Not shortened where the default is too long: the name of a size tells the length.
    decoded = "decode" in settings.workload  # one token more than are cached
    require_positions(dense.model, settings.workload_length + decoded, "workload_length")
    from disp_llm.evaluation.latency import latency_costs

    progress = job.count("timing compact models")
    return latency_costs(dense, timed_workloads(settings), align, chunk, progress)


def _require_room_for_blocks(budget: Budget, outside: float, sizes: tuple[Target, ...]) -> None:
    """Refuses a share of all parameters that what lies outside of the blocks has already."""
    share = outside / budget.dense_cost
    for size in sizes:
        if budget.share_of(size) <= share:
            stays = size.like(outside) if size.unit else f"{share:.4f}"
            raise InputError(
                f"{size} of all parameters leaves none for the blocks: embeddings, norms and "
                f"head, which stay, are {stays}",
                field="target",
                hint="ask for more, or count block parameters alone by `keep`",
            )


def shares_of(sizes: tuple[Target, ...], budget: Budget, align: int) -> tuple[float, ...]:
    """Sizes as shares of what the dense model costs."""
    for size in sizes:
        if size.unit:
            _require_between(size, budget, align)
    return tuple(map(budget.share_of, sizes))


def _require_between(size: Target, budget: Budget, align: int) -> None:
    """Refuses an absolute above what the original has, or below what the smallest model has."""
    share = budget.share_of(size)
    if share >= 1:
        raise InputError(
            f"the original fits in {size} as it is, with {size.like(budget.dense_cost)}",
            field="target",
            hint="ask for less, or take the original",
        )
    try:
        project(torch.zeros(budget.layout.entries), budget, share, align)
    except TooSmall as error:
        least = size.like(error.least * budget.dense_cost, at_least=True)
        raise InputError(
            f"{size} is less than the smallest model, {least}",
            field="target",
            hint=f"ask for {least} or more, for a smaller `align`, or for more `sites`",
        ) from error
