"""Checks that an exported model computes the same logits as the masked one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name, free_memory
from disp_llm.models.hooks import hooks

logger = logging.getLogger(__name__)

WRONG = 1e-3
"""Largest float32 logit error, relative to the largest logit, that rounding can explain."""


def warn_of_error(errors: dict[str, float], name: str) -> None:
    """Warns if the float32 logit error of an export exceeds `WRONG` or is NaN."""
    error = errors.get("max_logit_error", 0.0)
    if not error <= WRONG:
        logger.warning(
            "the logits of %s differ from the masked model's by %.1e of the largest; please report "
            "it with its card.json", name, error,
        )  # fmt: skip


@torch.no_grad()
def logit_errors(dense: PrunableModel, compact: PrunableModel, tokens: Tensor) -> dict[str, float]:
    """Returns max|Δlogit| / max|logit| of the compact model against the dense one, run masked.

    Measures in the dtype of the run and in float32. Skips float32 with a warning if memory is short
    or weights are sharded or on the meta device.
    """
    models, tokens = (dense, compact), tokens[None].to(dense.device)
    errors = {f"max_logit_error_{dtype_name(dense.dtype)}": _error(models, tokens)}
    if dense.dtype != torch.float32:
        extra = max(map(_bytes_in_float32, models))
        if not dense.is_whole or extra > free_memory(dense.device):
            logger.warning(
                "no memory to check the export in float32: only %s was checked", dense.dtype
            )
            return errors
        errors["max_logit_error_float32"] = _error(models, tokens, _in_float32)
    return errors | {"max_logit_error": errors["max_logit_error_float32"]}


def _error(
    models: tuple[PrunableModel, PrunableModel],
    tokens: Tensor,
    context: Callable[[PrunableModel], AbstractContextManager] = nullcontext,
) -> float:
    logits = []
    for target in models:
        with context(target):
            logits.append(target.model(tokens, use_cache=False).logits.float())
    wanted, got = logits
    return float((wanted - got).abs().max() / wanted.abs().max())


@contextmanager
def _in_float32(target: PrunableModel) -> Iterator[None]:
    """Runs a model in float32 while the context lasts. A block's parameters are float32 only while
    it runs, so that memory holds one block more. Buffers such as rotary frequencies are float32
    already."""
    own = {parameter: parameter.data for parameter in target.model.parameters()}

    def cast(block: nn.Module, *_: Any) -> None:
        for parameter in block.parameters():
            parameter.data = parameter.data.float()

    def restore(block: nn.Module, *_: Any) -> None:
        for parameter in block.parameters():
            parameter.data = own[parameter]

    handles = [block.register_forward_pre_hook(cast) for block in target.blocks]
    handles += [block.register_forward_hook(restore) for block in target.blocks]
    try:
        with hooks(handles):
            for parameter in own.keys() - set(target.blocks.parameters()):
                parameter.data = parameter.data.float()
            yield
    finally:
        restore(target.model)


def _bytes_in_float32(target: PrunableModel) -> int:
    """Returns what `_in_float32` adds: the parameters outside the blocks, and those of a block."""
    of_blocks = [sum(p.numel() for p in block.parameters()) for block in target.blocks]
    return 4 * (target.parameters - sum(of_blocks) + max(of_blocks))
