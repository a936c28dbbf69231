"""What pruning a model would mean, from its configuration alone: no weights are loaded."""

from typing import Any

import torch
from transformers import PreTrainedModel

from disp_llm.budget import Budget, project
from disp_llm.families import Family
from disp_llm.losses import CHUNK
from disp_llm.masks import SITES, Layout, layout_of
from disp_llm.models import empty_model, family_of_any, load_config, resolve_device, resolve_dtype
from disp_llm.prune import free_memory


def examine(name: str, keeps: tuple[float, ...], length: int, device_name: str) -> dict[str, Any]:
    """Family, sites, the size of each keep, and the memory of learning against what is free.

    Raises:
        InputError: no such model, or an unknown architecture.
    """
    config = load_config(name)
    family = family_of_any(config)
    device = resolve_device(device_name)
    model = empty_model(config)
    layout = layout_of(model, family)
    budget = Budget(layout)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = resolve_dtype("auto", device).itemsize
    needed = learning_memory(model, layout, family, length, width)
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
        "fits": needed <= free,
    }


def sites(layout: Layout) -> dict[str, int]:
    """Entries of each site in the first block, and what one of them costs in block parameters."""
    return dict(zip(SITES, layout.blocks[0].lengths, strict=True))


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


def learning_memory(
    model: PreTrainedModel, layout: Layout, family: Family, length: int, width: int
) -> int:
    """Bytes of weights, of the activations of one window, and of logits with their moments.

    An estimate: a block keeps about 12 vectors of the residual stream's width, 6 of the
    intermediate one and 3 of the attention's for its backward pass.
    """
    weights = sum(parameter.numel() for parameter in model.parameters()) * width
    activations = sum(
        length * (12 * block.hidden + 6 * block.intermediate + 3 * block.qkv) * width
        for block in layout.blocks
    )
    head = 3 * 4 * CHUNK * model.config.vocab_size
    return weights + activations + head + 5 * 4 * layout.entries
