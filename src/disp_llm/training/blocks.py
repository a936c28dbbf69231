"""Blocks that run through torch.compile, or are recomputed in the backward pass."""

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
"""Steps; below, compiling takes longer than it saves."""


@contextmanager
def training_blocks(
    target: PrunableModel, config: TrainingConfig, compiled: bool
) -> Iterator[None]:
    """While the context lasts, the blocks run as training is to run them. Compiled blocks of one
    shape share the result; what cannot be compiled runs as it is."""
    blocks = list(target.blocks) if compiled else []
    settings = {"suppress_errors": True, "cache_size_limit": 8 + 2 * len(blocks)}
    with torch._dynamo.config.patch(settings), _forward_of(blocks):
        for block in blocks:
            block.forward = torch.compile(block.forward)
        with checkpointed_blocks(target, config.recomputes):
            yield


@contextmanager
def checkpointed_blocks(target: PrunableModel, active: bool) -> Iterator[None]:
    """While the context lasts, blocks keep their inputs only and run again in the backward pass.

    transformers' own switch needs training mode, which would bring dropout with it.
    """
    blocks = list(target.blocks) if active else []
    with _forward_of(blocks):
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        yield


@contextmanager
def _forward_of(blocks: list[nn.Module]) -> Iterator[None]:
    """At the end of the context, the blocks run as they did before; what holds their weights may
    run them in its own way."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def compiles(config: TrainingConfig, steps: int, target: PrunableModel) -> bool:
    """Whether torch.compile is used: as asked, or where it is worth it."""
    if config.compile == "auto":
        return steps >= WORTH_COMPILING and can_be_worth_compiling(target)
    return config.compile == "yes"


def can_be_worth_compiling(target: PrunableModel) -> bool:
    """Whether enough steps win back what compiling takes. Not for a mixture of experts: what tokens
    run through changes from step to step."""
    tool = "gcc" if target.device.type == "cuda" else os.environ.get("CXX", "g++")
    return target.family.experts is None and shutil.which(tool) is not None
