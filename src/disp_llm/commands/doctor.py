"""What pruning a model would mean, from its configuration alone: no weights are loaded.

Only to measure alignments the model itself is needed.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.caller import Caller
from disp_llm.commands.memory_plans import MemoryPlan, memory_plans
from disp_llm.config.doctor import DoctorConfig
from disp_llm.config.effect import usual_settings
from disp_llm.config.parts import MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import load, load_shapes
from disp_llm.runs.progress import ProgressCallback

SECONDS = 2.0
"""How long the speed of the device is measured."""


def doctor(model: DoctorConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning against what is free.

    Args:
        model: the model to examine, or all settings at once.
        options: settings by the names of their flags; `progress`, as `prune` takes it.

    Raises:
        InputError: no such model, or an unknown architecture.
    """
    caller, config = Caller.asking(DoctorConfig, model, options)
    config.validate()
    empty, device = PrunableModel(*load_shapes(config.model)), resolve_device(config.device)
    budget, dtype = Budget(empty.layout), resolve_dtype("auto", device)
    result = {
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
    }
    result |= _plans(config, empty, dtype, device)
    if config.measure:
        with caller.watching() as progress:
            result["alignments"] = _measure_alignments(config, progress)
    return result


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


def _plans(
    config: DoctorConfig, empty: PrunableModel, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Every plan to learn by the default recipe: what it takes, and whether it fits."""
    settings = usual_settings(PruneConfig(config.model))
    training = replace(settings.training, length=config.length, batch=config.batch)
    settings = replace(settings, training=training)
    count, free = max(torch.cuda.device_count(), 1), float(free_memory(device))
    plans = memory_plans(empty, settings, count, dtype.itemsize)
    rate = operations_per_second(empty, config.length * config.batch, dtype, device)
    return {
        "devices": count,
        "memory_free_bytes": round(free),
        "plans": [
            {
                "name": plan.name,
                "processes": plan.processes,
                "memory_bytes": plan.memory.total,
                "fits": plan.fits(free),
                "learning_s": round(learning_operations(empty, settings, plan) / rate, 1),
            }
            for plan in plans
        ],
        "advice": advice(plans, free),
    }


def learning_operations(empty: PrunableModel, settings: PruneConfig, plan: MemoryPlan) -> float:
    """Operations of scoring and learning in each process: two for each weight and token of a
    forward pass, with the teacher's."""
    forward = 2 * (empty.block_parameters + empty.head_weight.numel())
    learning = settings.learn.steps * settings.training.tokens_per_step
    passes = plan.operations + (1 if settings.training.distill else 0)
    return forward * (learning * passes + settings.scores.tokens * plan.operations)


def operations_per_second(
    empty: PrunableModel, tokens: int, dtype: torch.dtype, device: torch.device
) -> float:
    """How fast the device multiplies matrices of the model's own shape."""
    shape = empty.layout.blocks[0]
    left = torch.randn(tokens, shape.hidden, dtype=dtype, device=device)
    right = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)

    def product() -> None:
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        product()
        done += 1
    return 2 * tokens * shape.hidden * shape.intermediate * max(done, 1) / passed


def advice(plans: list[MemoryPlan], free: float) -> str:
    """The first plan that fits."""
    best = next((plan for plan in plans if plan.fits(free)), None)
    if best is None:
        return "does not fit: use a larger device, several, or a smaller --length or --batch"
    return "fits" if best is plans[0] else f"fits with {best.name}"


def _measure_alignments(config: DoctorConfig, progress: ProgressCallback) -> list[dict[str, Any]]:
    """Times of a half-size model for several alignments of its widths, on this machine."""
    from disp_llm.evaluation.alignment import measured_alignments
    from disp_llm.evaluation.timing import Workload, fitted

    loaded = load(config.model, MachineConfig(device=config.device), dense_only=True)
    usual = (Workload("prefill", 512, 1), Workload("decode", 128, 1))
    workloads = tuple(fitted(workload, loaded.model) for workload in usual)

    def on_model(done: int, total: int) -> None:
        progress("timing alignments", done, total, {})

    return measured_alignments(PrunableModel.of(loaded), workloads, on_model)
