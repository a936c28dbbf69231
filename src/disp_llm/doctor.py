"""What pruning a model would mean, from its configuration alone: no weights are loaded.

Only where alignments are to be measured is the model itself needed.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from disp_llm.bench import Work
from disp_llm.budget import Budget, project
from disp_llm.config import MachineConfig
from disp_llm.families import family_of
from disp_llm.latency import measured_alignments
from disp_llm.losses import CHUNK
from disp_llm.masks import Layout, layout_of
from disp_llm.models import (
    empty_model,
    load,
    load_config,
    resolve_device,
    resolve_dtype,
)
from disp_llm.sizes import free_memory


def examine(name: str, keeps: tuple[float, ...], length: int, device_name: str) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning against what is free.

    Raises:
        InputError: no such model, or an unknown architecture.
    """
    config = load_config(name)
    family = family_of(config)
    device = resolve_device(device_name)
    model = empty_model(config)
    layout = layout_of(model, family)
    budget = Budget(layout)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = resolve_dtype("auto", device).itemsize
    needed = memory(model, layout, length, width)
    free = free_memory(device)
    return {
        "model": name,
        "model_type": config.model_type,
        "blocks": len(layout.blocks),
        "sites": sites(layout),
        "parameters": parameters,
        "block_parameters": budget.full,
        "mask_entries": layout.entries,
        "sizes": [size(budget, keep, parameters, width) for keep in keeps],
        "device": str(device),
        "memory_needed_bytes": needed,
        "memory_free_bytes": free,
        "advice": advice(needed, free),
    }


def sites(layout: Layout) -> dict[str, int]:
    """Entries of each site in the first block, and what one of them costs in block parameters."""
    return dict(zip(layout.sites, layout.blocks[0].lengths, strict=True))


def size(budget: Budget, keep: float, parameters: int, width: int) -> dict[str, Any]:
    """What a keep leaves. Which entries stay is learned later; the counts hardly depend on it."""
    spread = torch.cat([torch.linspace(1, 0, n) for n in budget.layout.lengths])
    counts = budget.layout.counts(project(spread, budget, keep).kept.long())
    left = parameters - budget.removed_parameters(counts)
    return {
        "keep": keep,
        "keep_total": left / parameters,
        "parameters": left,
        "block_parameters": int(budget.block_parameters(counts)),
        "bytes": left * width,
        "gflops_per_token": budget.flops_per_token(counts) / 1e9,
    }


def memory(model: PreTrainedModel, layout: Layout, length: int, width: int) -> dict[str, int]:
    """Bytes that three ways of learning need: weights, activations of one window, logits and
    moments.

    An estimate: for its backward pass a block keeps about 12 vectors of the residual stream's
    width, 6 of the intermediate one and 3 of the attention's; with gradient checkpointing only its
    input.
    """
    weights = sum(parameter.numel() for parameter in model.parameters()) * width
    fixed = weights + 3 * 4 * CHUNK * model.config.vocab_size + 5 * 4 * layout.entries
    blocks = [
        length * (12 * block.hidden + 6 * block.intermediate + 3 * block.qkv) * width
        for block in layout.blocks
    ]
    inputs = sum(length * block.hidden * width for block in layout.blocks)
    return {
        "learning": fixed + sum(blocks),
        "gradient_checkpointing": fixed + inputs + max(blocks),
        "forward_only": fixed + max(blocks),
    }


def advice(needed: dict[str, int], free: int) -> str:
    """The first way that fits."""
    if needed["learning"] <= free:
        return "fits"
    if needed["gradient_checkpointing"] <= free:
        return "fits with --gradient-checkpointing"
    if needed["forward_only"] <= free:
        return "forward passes fit, learning does not: --method flap or wanda"
    return "does not fit: use a larger device, or a smaller --length"


def measure_alignments(
    name: str, device: str, on_model: Callable[[int, int], None]
) -> dict[str, Any]:
    """Times of a half-size model for several alignments of its widths, on this machine.

    Raises:
        InputError: the model is unusable.
    """
    loaded = load(name, MachineConfig(device=device), dense_only=True)
    layout = layout_of(loaded.model, loaded.family)
    works = (Work("prefill", 512, 1), Work("decode", 128, 1))
    return {"alignments": measured_alignments(loaded.model, loaded.family, layout, works, on_model)}
