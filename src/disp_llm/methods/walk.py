"""Calibration text on its way through the model, block by block.

B windows, T tokens of a window, D residual stream, K inputs of a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.families import Family
from disp_llm.learn import Task
from disp_llm.masks import blocks_of
from disp_llm.methods.context import Context, calibration_windows

Visit = Callable[[int, nn.Module, dict[str, Float[Tensor, "K K"]]], None]
"""Does something to a block, from its place and the second moments."""


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    task: Task,
    context: Context,
    *visits: Visit,
    changes: bool = True,
) -> None:
    """Visits every block of `model`, first to last, with `Σ x·xᵀ` over calibration tokens of what
    enters each of its linear layers, in float32. Layers that share an input share the tensor.

    Args:
        visits: what is done to a block, one after the other; each sees what enters the layers
            after the one before it.
        changes: whether a visit changes what its block gives; what comes after it then sees that.
    """
    windows = calibration_windows(task, context.scores).to(next(model.parameters()).device)
    blocks = blocks_of(model, task.family)
    states, arguments = entries(model, blocks, windows)
    for index, block in enumerate(blocks):
        for visit in visits:
            with _second_moments(block, task.family) as moments:
                outputs = [run_block(block, state, arguments[index]) for state in states]
            visit(index, block, moments)
        if changes:
            outputs = [run_block(block, state, arguments[index]) for state in states]
        states = outputs
        context.on_sequence(index + 1, len(blocks))


def run_block(
    block: nn.Module, hidden: Float[Tensor, "1 T D"], arguments: dict[str, Any]
) -> Tensor:
    """What leaves a block, from what enters it and what else it is called with."""
    out = block(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out


def entries(
    model: PreTrainedModel, blocks: nn.ModuleList, windows: Tensor
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What enters the first block, a tensor a window, and what else each block is called with."""
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = [{} for _ in blocks]

    def hook(index: int):
        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if index == 0:
                states.append(args[0] if args else kwargs["hidden_states"])
            arguments[index] = {k: v for k, v in kwargs.items() if k != "hidden_states"}

        return keep

    handles = [
        block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks)
    ]
    try:
        for window in windows:
            model.base_model(input_ids=window[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states, arguments


@contextmanager
def _second_moments(block: nn.Module, family: Family) -> Iterator[dict[str, Tensor]]:
    """While the context lasts, `Σ x·xᵀ` of each linear layer's inputs is summed up."""
    moments: dict[str, Tensor] = {}

    def hook(paths: tuple[str, ...]):
        def add(module: nn.Module, args: tuple) -> None:
            inputs = args[0].flatten(0, -2).float()
            total = inputs.T @ inputs
            total = moments[paths[0]] + total if paths[0] in moments else total
            for path in paths:
                moments[path] = total

        return add

    handles = [
        block.get_submodule(paths[0]).register_forward_pre_hook(hook(paths))
        for branch in (family.attention, family.mlp)
        for paths in (branch.reads, (branch.writes,))
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
