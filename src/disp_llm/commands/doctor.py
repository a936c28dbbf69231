"""What pruning a model would mean, from its configuration alone: loads no weights and writes
nothing."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.api import called, takes
from disp_llm.commands.planning import (
    MemoryPlan,
    default_align,
    first_plan,
    memory_plans,
    shapes_of,
)
from disp_llm.commands.room import expected_range, outlook
from disp_llm.config.commands import DoctorConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.budget import Budget, least_share, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.runs.provenance import peak_memory_bytes


@takes(DoctorConfig)
def doctor(model: DoctorConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Returns model type, sites, the size at each keep, and memory and time of learning by the
    default recipe. On a CPU, memory includes the libraries, as measured in this process."""
    config = called(DoctorConfig, model, options).config
    settings, device = PruneConfig(config.model), resolve_device(config.device)
    empty = shapes_of(settings)
    budget, dtype = Budget(empty.layout, None, empty.sites), resolve_dtype("auto", device)
    training = replace(settings.training, length=config.length, batch=config.batch)
    count = max(torch.cuda.device_count(), 1) if device.type == "cuda" else 1
    free = free_memory(device)
    learns = replace(settings, training=training)
    plans = memory_plans(empty, learns, count, dtype.itemsize)
    best = first_plan(plans, free)
    widths = empty.layout.widths
    advice = "fits" if best is plans[0] else f"fits with {best.name}"
    libraries = peak_memory_bytes(device) if device.type == "cpu" else 0
    speed = operations_per_second(empty, dtype, device)
    return {
        "model": config.model,
        "model_type": empty.model.config.model_type,
        "blocks": len(empty.layout.blocks),
        # Entries of each site: the fewest and the most in any block.
        "sites": {site: [min(n), max(n)] for site, n in widths.items() if site in empty.sites},
        "parameters": empty.parameters,
        "block_parameters": budget.dense_block_parameters,
        "other_parameters": empty.other_parameters,
        "mask_entries": int(budget.never_pruned.logical_not().sum()),
        "sizes": [size(budget, keep, empty.parameters, dtype.itemsize) for keep in config.keep],
        **_fits(config, empty, budget, dtype.itemsize),
        "device": str(device),
        "devices": count,
        "memory_free_bytes": free,
        "plans": [
            {
                "name": plan.name,
                "processes": plan.processes,
                "memory_bytes": plan.memory.total + libraries,
                "fits": plan.fits(free),
                "seconds": round(learning_seconds(learns, empty, plan, speed)),
            }
            for plan in plans
        ],
        "advice": advice if best.fits(free) else DOES_NOT_FIT,
    }


def _fits(
    config: DoctorConfig, empty: PrunableModel, budget: Budget, itemsize: int
) -> dict[str, Any]:
    """Returns what the asked amount (`fit`) leaves of the model; empty if there is none."""
    if not config.fit:
        return {}
    settings = PruneConfig(config.model, budget=config.fitting)
    least = least_share(budget, default_align(empty))
    return {"fit": str(settings.sizes[0]), "fits": outlook(settings, empty, itemsize, least)}


DOES_NOT_FIT = "does not fit: use a larger device, several, or a smaller --length or --batch"


def size(budget: Budget, keep: float, parameters: int, itemsize: int) -> dict[str, Any]:
    """Returns the size at a keep. Which entries are kept is learned later and hardly changes it."""
    spread = torch.cat([torch.linspace(1, 0, n) for n in budget.layout.lengths])
    counts = budget.layout.counts(project(spread, budget, keep).kept.long())
    left = parameters - budget.removed_parameters(counts)
    return {
        "keep": keep,
        "keep_total": left / parameters,
        "parameters": left,
        "block_parameters": int(budget.block_parameters(counts)),
        "bytes": left * itemsize,
        "gflops_per_token": 2 * budget.active_parameters(counts) / 1e9,
        "expected": expected_range(keep),
    }


def learning_seconds(
    config: PruneConfig, target: PrunableModel, plan: MemoryPlan, per_second: float
) -> float:
    """Estimates seconds of scoring and learning, at `per_second` operations a second."""
    training, again = config.training, plan.gradient_checkpointing == "yes"
    passes = 2 + again + (training.distill > 0)
    tokens = passes * config.learn.steps * training.tokens_per_step + 2 * config.scores.tokens
    parameters = target.block_parameters_of(1) + target.head_weight.numel()
    return BESIDE_PRODUCTS * 2 * parameters * tokens / per_second


BESIDE_PRODUCTS = 2.0
"""Time of learning, as a multiple of the time of its matrix products."""
SECONDS = 1.0
"""How long the device's speed is measured."""


def operations_per_second(target: PrunableModel, dtype: torch.dtype, device: torch.device) -> float:
    """Measures how fast the device multiplies matrices of the model's own shape."""
    shape = target.layout.blocks[0]
    left = torch.randn(1024, shape.hidden, dtype=dtype, device=device)
    right = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        (left @ right).sum().item()  # waits for a GPU
        done += 1
    return 2 * len(left) * right.numel() * done / passed
