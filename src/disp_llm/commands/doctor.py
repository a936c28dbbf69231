"""What pruning a model would mean, from its configuration alone: no weights are loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.caller import Caller, takes
from disp_llm.commands.memory_plans import MemoryPlan, memory_plans
from disp_llm.config.checks import check_settings
from disp_llm.config.commands import DoctorConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import load_shapes


@takes(DoctorConfig)
def doctor(model: DoctorConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning by the default recipe
    against what is free.

    Args:
        model: the model to examine, or all settings at once.
        options: settings by the names of their flags.
    """
    _, config = Caller.asking(DoctorConfig, model, options)
    check_settings(config)
    empty, device = PrunableModel(*load_shapes(config.model)), resolve_device(config.device)
    budget, dtype = Budget(empty.layout), resolve_dtype("auto", device)
    settings = PruneConfig(config.model)
    training = replace(settings.training, length=config.length, batch=config.batch)
    count, free = max(torch.cuda.device_count(), 1), free_memory(device)
    plans = memory_plans(empty, replace(settings, training=training), count, dtype.itemsize)
    return {
        "model": config.model,
        "model_type": empty.model.config.model_type,
        "blocks": len(empty.layout.blocks),
        # Entries of each site, in the block that has least and in the one that has most.
        "sites": {site: [min(n), max(n)] for site, n in empty.layout.widths.items()},
        "parameters": empty.parameters,
        "block_parameters": budget.dense_block_parameters,
        "other_parameters": empty.other_parameters,
        "mask_entries": empty.layout.entries,
        "sizes": [size(budget, keep, empty.parameters, dtype.itemsize) for keep in config.keep],
        "device": str(device),
        "devices": count,
        "memory_free_bytes": free,
        "plans": [
            {
                "name": plan.name,
                "processes": plan.processes,
                "memory_bytes": plan.memory.total,
                "fits": plan.fits(free),
            }
            for plan in plans
        ],
        "advice": advice(plans, free),
    }


def size(budget: Budget, keep: float, parameters: int, itemsize: int) -> dict[str, Any]:
    """What a keep leaves. Which entries are kept is learned later and hardly changes it."""
    spread = torch.cat([torch.linspace(1, 0, n) for n in budget.layout.lengths])
    counts = budget.layout.counts(project(spread, budget, keep).kept.long())
    left = parameters - budget.removed_parameters(counts)
    return {
        "keep": keep,
        "keep_total": left / parameters,
        "parameters": left,
        "block_parameters": int(budget.block_parameters(counts)),
        "active_block_parameters": budget.active_parameters(counts),
        "bytes": left * itemsize,
        "gflops_per_token": 2 * budget.active_parameters(counts) / 1e9,
    }


def advice(plans: list[MemoryPlan], free: float) -> str:
    """The first plan that fits."""
    best = next((plan for plan in plans if plan.fits(free)), None)
    if best is None:
        return "does not fit: use a larger device, several, or a smaller --length or --batch"
    return "fits" if best is plans[0] else f"fits with {best.name}"
