"""What pruning a model would mean, from its configuration alone: no weights are loaded.

Only where alignments are to be measured is the model itself needed.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.budgets import counted_costs
from disp_llm.commands.caller import Caller
from disp_llm.commands.planning import sites_of
from disp_llm.commands.ways import Way, ways
from disp_llm.config.doctor import DoctorConfig
from disp_llm.config.effect import usual_settings
from disp_llm.config.parts import BudgetConfig, MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target
from disp_llm.evaluation.alignment import measured_alignments
from disp_llm.evaluation.timing import Workload, fitted
from disp_llm.masks.budget import Budget, TooSmall, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import load, load_shapes
from disp_llm.runs.progress import ProgressCallback


def examine(asked: DoctorConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning against what is free.

    Args:
        asked: the model to examine, or all settings at once.
        options: settings by the names of their flags; `progress`, as `prune` takes it.

    Raises:
        InputError: no such model, or an unknown architecture.
    """
    caller, config = Caller.asking(DoctorConfig, asked, options)
    config.validate()
    empty = PrunableModel(*load_shapes(config.model))
    described, device = empty.model.config, resolve_device(config.device)
    budget = Budget(empty.layout)
    itemsize = resolve_dtype("auto", device).itemsize
    result = {
        "model": config.model,
        "model_type": described.model_type,
        "blocks": len(empty.layout.blocks),
        "sites": sites(empty.layout),
        "parameters": empty.parameters,
        "block_parameters": budget.dense_block_parameters,
        "other_parameters": empty.other_parameters,
        "mask_entries": empty.layout.entries,
        "sizes": [size(budget, keep, empty.parameters, itemsize) for keep in config.keep],
        "device": str(device),
    }
    if config.memory:
        result["fit"] = fitting(config, empty, itemsize)
    result |= ways_of(config, empty, device)
    if config.measure:
        with caller.watching() as progress:
            result["alignments"] = measure_alignments(config, progress)
    return result


def sites(layout: Layout) -> dict[str, list[int]]:
    """Entries of each site, in the block that has least and in the one that has most."""
    return {site: [min(widths), max(widths)] for site, widths in layout.widths.items()}


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
        "gflops_per_token": budget.flops_per_token(counts) / 1e9,
    }


def fitting(config: DoctorConfig, empty: PrunableModel, itemsize: int) -> dict[str, Any]:
    """The largest share of the original's memory, weights and KV cache, that so many bytes hold;
    None where the smallest model is larger.

    Raises:
        InputError: a sequence is longer than the model reads.
    """
    length, batch = config.workload_length, config.workload_batch
    asked = Target.of(config.fit)
    memory = BudgetConfig("memory", (str(asked),), workload_length=length, workload_batch=batch)
    sites = sites_of(PruneConfig(config.model, budget=memory), empty.family)
    dense = replace(empty, sites=sites)
    budget = Budget(dense.layout, counted_costs(memory, dense, itemsize), sites)
    share = min(1.0, budget.share_of(asked))
    figures = {"asked": str(asked), "bytes": asked.value, "dense_bytes": budget.dense_cost}
    figures |= {"workload_length": length, "workload_batch": batch, "target": share}
    try:
        project(torch.zeros(budget.layout.entries), budget, share)
    except TooSmall as error:
        return figures | {"target": None, "smallest_bytes": error.least * budget.dense_cost}
    return figures


def ways_of(config: DoctorConfig, empty: PrunableModel, device: torch.device) -> dict[str, Any]:
    """Every way to learn, what it takes and whether it fits: of the default recipe."""
    dtype = resolve_dtype("auto", device)
    settings = usual_settings(PruneConfig(config.model))
    training = replace(settings.training, length=config.length, batch=config.batch)
    settings = replace(settings, training=training)
    count, free = config.elsewhere or (
        max(torch.cuda.device_count(), 1),
        float(free_memory(device)),
    )
    on_gpu = config.elsewhere is not None or device.type != "cpu"
    found = ways(empty, settings, count, dtype.itemsize, on_gpu)
    rate = 0.0
    if config.seconds and config.elsewhere is None:
        tokens = config.length * config.batch
        rate = operations_per_second(empty, tokens, dtype, device, config.seconds)
    operations = [learning_operations(empty, settings, way) for way in found]
    return {
        "devices": count,
        "memory_free_bytes": round(free),
        "ways": [
            {
                "name": way.name,
                "processes": way.processes,
                "memory_bytes": way.memory.total,
                "fits": way.fits(free),
                "exact": way.exact,
                "learning_s": round(needed / rate, 1) if rate else None,
            }
            for way, needed in zip(found, operations, strict=True)
        ],
        "advice": advice(found, free),
    }


def learning_operations(empty: PrunableModel, settings: PruneConfig, way: Way) -> float:
    """Operations of scoring and learning in each process: two for each weight and token of a
    forward pass, with the teacher's."""
    forward = 2 * (empty.block_parameters + empty.head_weight.numel())
    learning = settings.learn.steps * settings.training.tokens_per_step
    passes = way.operations + (1 if settings.training.distill else 0)
    return forward * (learning * passes + settings.scores.tokens * way.operations)


def operations_per_second(
    empty: PrunableModel, tokens: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    """How fast the device multiplies matrices of the model's own shape, measured for so long."""
    shape = empty.layout.blocks[0]
    left = torch.randn(tokens, shape.hidden, dtype=dtype, device=device)
    right = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)

    def product() -> None:
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        product()
        done += 1
    return 2 * tokens * shape.hidden * shape.intermediate * max(done, 1) / passed


def advice(found: list[Way], free: float) -> str:
    """The first way that fits and is exact, or else the first that fits."""
    fitting = [way for way in found if way.fits(free)]
    if not fitting:
        return "does not fit: use a larger device, several, or a smaller --length or --batch"
    best = next((way for way in fitting if way.exact), fitting[0])
    return "fits" if best is found[0] else f"fits with {best.name}"


def measure_alignments(config: DoctorConfig, progress: ProgressCallback) -> list[dict[str, Any]]:
    """Times of a half-size model for several alignments of its widths, on this machine.

    Raises:
        InputError: the model is unusable.
    """
    loaded = load(config.model, MachineConfig(device=config.device), dense_only=True)
    usual = (Workload("prefill", 512, 1), Workload("decode", 128, 1))
    workloads = tuple(fitted(workload, loaded.model) for workload in usual)

    def on_model(done: int, total: int) -> None:
        progress("timing alignments", done, total, {})

    return measured_alignments(PrunableModel.of(loaded), workloads, on_model)
