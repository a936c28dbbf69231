"""Runs blocks through torch.compile, or recomputes them in the backward pass."""

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from disp_llm.config.learning import TrainingConfig
from disp_llm.masks.prunable import PrunableModel

WORTH_COMPILING = 60
"""Fewest steps for which compiling saves more time than it takes."""


@contextmanager
def training_blocks(
    target: PrunableModel, config: TrainingConfig, compiled: bool
) -> Iterator[None]:
    """Compiles and checkpoints the blocks as asked within the context. Compiled blocks of one shape
    share the result; what cannot be compiled runs as it is."""
    blocks = list(target.blocks) if compiled else []
    settings = {"suppress_errors": True, "cache_size_limit": 8 + 2 * len(blocks)}
    with torch._dynamo.config.patch(settings), _forward_of(blocks):
        for block in blocks:
            block.forward = torch.compile(block.forward)
        with checkpointed_blocks(target, config.recomputes):
            yield


@contextmanager
def checkpointed_blocks(target: PrunableModel, active: bool) -> Iterator[None]:
    """Makes blocks keep only their inputs and run again in the backward pass, within the context.

    transformers' own switch needs training mode, which would also enable dropout.
    """
    blocks = list(target.blocks) if active else []
    with _forward_of(blocks):
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        yield


@contextmanager
def _forward_of(blocks: list[nn.Module]) -> Iterator[None]:
    """Restores the blocks' previous forward at the end of the context, including one set by
    whatever holds their weights."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def compiles(config: TrainingConfig, steps: int, target: PrunableModel) -> bool:
    """Returns whether to use torch.compile: as asked or, by default, if it saves time."""
    if config.compile == "auto":
        return steps >= WORTH_COMPILING and can_be_worth_compiling(target)
    return config.compile == "yes"


def can_be_worth_compiling(target: PrunableModel) -> bool:
    """Returns whether compiling can pay off with enough steps. It cannot without a compiler, or for
    a mixture of experts, where the experts that run change from step to step."""
    tool = "gcc" if target.device.type == "cuda" else os.environ.get("CXX", "g++")
    return target.family.experts is None and shutil.which(tool) is not None
