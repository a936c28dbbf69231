"""Blocks that run through torch.compile, or are recomputed in the backward pass."""

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from disp_llm.config.learning import TrainingConfig
from disp_llm.masks.prunable import PrunableModel

WORTH_COMPILING = 60
"""Steps; below, compiling takes longer than it saves."""


@contextmanager
def training_blocks(
    target: PrunableModel, config: TrainingConfig, compiled: bool
) -> Iterator[None]:
    """While the context lasts, the blocks run as training is to run them."""
    with (
        compiled_blocks(target, compiled),
        checkpointed_blocks(target, config.gradient_checkpointing),
    ):
        yield


@contextmanager
def compiled_blocks(target: PrunableModel, active: bool) -> Iterator[None]:
    """While the context lasts, blocks run through torch.compile; blocks of one shape share the
    result. What cannot be compiled runs as it is."""
    blocks = list(target.blocks) if active else []
    with torch._dynamo.config.patch(suppress_errors=True, cache_size_limit=8 + 2 * len(blocks)):
        for block in blocks:
            block.forward = torch.compile(block.forward)
        try:
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)


@contextmanager
def checkpointed_blocks(target: PrunableModel, active: bool) -> Iterator[None]:
    """While the context lasts, blocks keep their inputs only and run again in the backward pass.

    transformers' own switch needs training mode, which would bring dropout with it.
    """
    blocks = list(target.blocks) if active else []
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def compiles(config: TrainingConfig, steps: int, target: PrunableModel) -> bool:
    """Whether blocks run through torch.compile: as asked, or where it is worth it. What tokens run
    through in a mixture of experts changes from step to step, so that it is not there."""
    if config.compile == "auto":
        worth = steps >= WORTH_COMPILING and target.family.experts is None
        return worth and can_compile(target.device)
    return config.compile == "yes"


def can_compile(device: torch.device) -> bool:
    """Whether the tool is there that torch.compile needs."""
    tool = "gcc" if device.type == "cuda" else os.environ.get("CXX", "g++")
    return shutil.which(tool) is not None
