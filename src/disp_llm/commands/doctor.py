"""What pruning a model would mean, from its configuration alone: no weights are loaded.

Only where alignments are to be measured is the model itself needed.
"""

from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.front import Caller
from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.doctor import DoctorConfig
from disp_llm.config.learning import LearnConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.evaluation.alignment import measured_alignments
from disp_llm.evaluation.timing import Workload, fitted
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import empty_model, load, load_config
from disp_llm.runs.progress import ProgressCallback
from disp_llm.training.losses import CHUNK


def examine(asked: DoctorConfig | str | Path, **options: Any) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning against what is free.

    Args:
        asked: the model to examine, or all settings at once.
        options: settings by the names of their flags; `progress`, as `prune` takes it.

    Raises:
        InputError: no such model, or an unknown architecture.
    """
    caller, config = Caller.asking(DoctorConfig, asked, options)
    config.validate()
    described = load_config(config.model)
    device = resolve_device(config.device)
    family = family_of(described)  # before what transformers says of a model that it cannot make
    empty = PrunableModel(empty_model(described), family)
    budget = Budget(empty.layout)
    itemsize = resolve_dtype("auto", device).itemsize
    needed, free = memory(empty, config.length * config.batch, itemsize), free_memory(device)
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
        "memory_needed_bytes": needed,
        "memory_free_bytes": free,
        "advice": advice(needed, free),
    }
    if config.measure:
        with caller.watching() as progress:
            result["alignments"] = measure_alignments(config, progress)
    return result


def sites(layout: Layout) -> dict[str, int]:
    """Entries of each site in the first block."""
    return dict(zip(layout.sites, layout.blocks[0].lengths, strict=True))


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


def memory(empty: PrunableModel, tokens: int, itemsize: int) -> dict[str, int]:
    """Bytes that three ways of learning need: weights, activations of so many tokens, and what is
    trained (logits, scales, adapters of the default rank) with its gradient and moments.

    An estimate: for its backward pass a block keeps about 12 vectors of the residual stream's
    width, 6 of the intermediate one and 3 of the attention's; with gradient checkpointing only its
    input.
    """
    shapes, vocabulary = empty.layout.blocks, empty.model.config.get_text_config().vocab_size
    weights = empty.parameters * itemsize
    adapters = LearnConfig().adapter_rank * sum(sum(widths_of(one)) for one in empty.linears())
    trained = 5 * 4 * empty.layout.entries + 4 * 4 * adapters
    constant = weights + 3 * 4 * CHUNK * vocabulary + trained
    blocks = [
        tokens * (12 * block.hidden + 6 * block.used + 3 * block.qkv) * itemsize for block in shapes
    ]
    inputs = sum(tokens * block.hidden * itemsize for block in shapes)
    return {
        "learning": constant + sum(blocks),
        "gradient_checkpointing": constant + inputs + max(blocks),
        "forward_only": constant + max(blocks),
    }


def advice(needed: dict[str, int], free: int) -> str:
    """The first way that fits."""
    if needed["learning"] <= free:
        return "fits"
    if needed["gradient_checkpointing"] <= free:
        return "fits with --gradient-checkpointing"
    if needed["forward_only"] <= free:
        return "forward passes fit, learning does not: --method flap or wanda"
    return "does not fit: use a larger device, or a smaller --length or --batch"


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
