"""What pruning a model would mean, and what a command would do, from configurations alone: no
weights are loaded and nothing is written."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.api import called, takes
from disp_llm.commands.engines import require_readable
from disp_llm.commands.planning import (
    ROOM,
    first_plan,
    memory_plans,
    own_needs,
    require_possible,
    shapes_of,
)
from disp_llm.commands.recovery_models import teacher_of
from disp_llm.commands.room import outlook
from disp_llm.config.commands import DoctorConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.sources import held_out
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import empty_model, family_of_any, load_config
from disp_llm.models.windows import within_positions
from disp_llm.runs.settings import available

STEPPED = 4 * 4
"""Bytes for each weight that recovery trains: itself, its gradient and two moments, in float32."""


@takes(DoctorConfig)
def doctor(model: DoctorConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning by the default recipe
    against what is free."""
    config = called(DoctorConfig, model, options).config
    settings, device = PruneConfig(config.model), resolve_device(config.device)
    empty = shapes_of(settings)
    budget, dtype = Budget(empty.layout, None, empty.sites), resolve_dtype("auto", device)
    training = replace(settings.training, length=config.length, batch=config.batch)
    count = max(torch.cuda.device_count(), 1) if device.type == "cuda" else 1
    free = free_memory(device)
    plans = memory_plans(empty, replace(settings, training=training), count, dtype.itemsize)
    best = first_plan(plans, free)
    widths = empty.layout.widths
    advice = "fits" if best is plans[0] else f"fits with {best.name}"
    return {
        "model": config.model,
        "model_type": empty.model.config.model_type,
        "blocks": len(empty.layout.blocks),
        # Entries of each site, in the block that has least and in the one that has most.
        "sites": {site: [min(n), max(n)] for site, n in widths.items() if site in empty.sites},
        "parameters": empty.parameters,
        "block_parameters": budget.dense_block_parameters,
        "other_parameters": empty.other_parameters,
        "mask_entries": int(budget.never_pruned.logical_not().sum()),
        "sizes": [size(budget, keep, empty.parameters, dtype.itemsize) for keep in config.keep],
        **_fits(config, empty, dtype.itemsize),
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
        "advice": advice if best.fits(free) else DOES_NOT_FIT,
    }


def _fits(config: DoctorConfig, empty: PrunableModel, itemsize: int) -> dict[str, Any]:
    """What an amount leaves of the model, where one is given."""
    if not config.fit:
        return {}
    settings = PruneConfig(config.model, budget=config.fitting)
    return {"fit": str(settings.sizes[0]), "fits": outlook(settings, empty, itemsize)}


DOES_NOT_FIT = "does not fit: use a larger device, several, or a smaller --length or --batch"


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
        "bytes": left * itemsize,
        "gflops_per_token": 2 * budget.active_parameters(counts) / 1e9,
    }


SECONDS = 1.0
"""How long the speed of the device is measured."""


def dry_run(config: PruneConfig | RecoverConfig) -> dict[str, Any]:
    """The stages of a command with the tokens that each reads (0 = as many as there is time for),
    the memory of one process that trains, and a lower bound of the time of training in seconds.
    What the command would refuse is refused."""
    available(config)
    device = resolve_device(config.machine.device)
    dtype = resolve_dtype(config.machine.dtype, device)
    free = free_memory(device)
    prunes = isinstance(config, PruneConfig)
    plan = _pruning(config, dtype.itemsize, free) if prunes else _recovery(config, dtype.itemsize)
    stages, memory, passes, target = plan
    suite = {"measure on the suite": 0} if config.suite else {}
    operations = 2 * (target.block_parameters_of(1) + target.head_weight.numel()) * passes
    return {
        "stages": stages | suite,
        "memory_bytes": memory,
        "memory_free_bytes": free,
        "fits": memory <= ROOM * free,
        "training_s": round(operations / operations_per_second(target, dtype, device), 1),
        "device": str(device),
        "output_dir": str(config.output_dir),
    }


Plan = tuple[dict[str, int], int, int, PrunableModel]
"""Tokens by stage, bytes, tokens times passes over the model, and the model, which is empty."""


def _pruning(asked: PruneConfig, itemsize: int, free: int) -> Plan:
    require_possible(asked, asked.sizes)
    empty = shapes_of(asked)
    config = within_positions(asked, empty.model.config, fewer_tokens=asked.cuts_tokens)
    learn, measured, stages = config.learn, config.evaluation.tokens, {}
    if config.text.may_be_written:
        needs = own_needs(config, 1)
        stages["write the model's own text"] = needs.learning + needs.held_out
    stages["measure the original"] = measured
    if config.reads_calibration:
        stages["score"] = config.scores.tokens
    learning = 0
    if config.reads.steps:
        learning = 0 if learn.minutes else learn.steps * config.training.tokens_per_step
        stages["learn"] = learning
    names = map(config.budget.size_name, config.sizes)
    if config.budget.decides:
        ways = outlook(config, empty, itemsize)
        stages["measure vocabularies and roundings"] = 0
        names = (f"{one['keep']:g}, {one['bits']}" for one in ways)
    stages |= {f"export and measure {name}": measured for name in names}
    alone = replace(config, training=replace(config.training, shard="no"))  # one process is counted
    plan = first_plan(memory_plans(empty, alone, 1, itemsize), free)
    again = plan.gradient_checkpointing == "yes"
    passes = learning * (2 + again + (config.training.distill > 0))
    return stages, plan.memory.total, passes + 2 * stages.get("score", 0), empty


def _recovery(asked: RecoverConfig, itemsize: int) -> Plan:
    require_readable(Path(asked.model), asked.demands)
    original = teacher_of(asked, asked.text.may_be_written)
    shapes = [load_config(name) for name in filter(None, (asked.model, original))]
    config = within_positions(asked, *shapes)
    models = [PrunableModel(empty_model(shape), family_of_any(shape)) for shape in shapes]
    learning, stages = config.steps(1) * config.training.tokens_per_step, {}
    if config.text.may_be_written:
        written = learning + held_out(config.text, config.evaluation, learning)
        stages["write the original's own text"] = written
    measured = config.evaluation.tokens
    stages |= {"measure before": measured, "train": learning, "measure after": measured}
    trained = sum(p.numel() for block in models[0].blocks for p in block.parameters())
    frozen = sum(model.parameters for model in models) - trained
    memory = frozen * itemsize + trained * STEPPED  # what a step needs besides comes on top
    return stages, memory, learning * (3 + (config.training.distill > 0)), models[0]


def operations_per_second(target: PrunableModel, dtype: torch.dtype, device: torch.device) -> float:
    """How fast the device multiplies matrices of the model's own shape."""
    shape = target.layout.blocks[0]
    left = torch.randn(1024, shape.hidden, dtype=dtype, device=device)
    right = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        (left @ right).sum().item()  # waits for a GPU
        done += 1
    return 2 * len(left) * right.numel() * done / passed
