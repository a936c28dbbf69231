"""Checks that an exported model computes the same logits as the masked one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from disp_llm.models.devices import dtype_name, free_memory

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
def logit_errors(
    dense: PreTrainedModel, compact: PreTrainedModel, tokens: Tensor
) -> dict[str, float]:
    """Returns max|Δlogit| / max|logit| of the compact model against the dense one, run masked.

    Measures in the dtype of the run and in float32 (casting weights there and back is lossless).
    Skips float32 with a warning if memory is short or weights are sharded or on the meta device.
    """
    device, dtype = next(dense.parameters()).device, dense.dtype
    models, tokens = (dense, compact), tokens[None].to(device)
    errors = {f"max_logit_error_{dtype_name(dtype)}": _error(models, tokens)}
    extra = 2 * max(model.num_parameters() for model in models)
    if dtype != torch.float32:
        held = any(isinstance(p, DTensor) or p.is_meta for p in dense.parameters())
        if held or extra > free_memory(device):
            logger.warning("no memory to check the export in float32: only %s was checked", dtype)
            return errors
        errors["max_logit_error_float32"] = _error(models, tokens, _in_float32)
    return errors | {"max_logit_error": errors["max_logit_error_float32"]}


def _error(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokens: Tensor,
    context: Callable[[PreTrainedModel], AbstractContextManager] = nullcontext,
) -> float:
    logits = []
    for model in models:
        with context(model):  # one at a time: memory holds only one model in float32
            logits.append(model(tokens, use_cache=False).logits.float())
    wanted, got = logits
    return float((wanted - got).abs().max() / wanted.abs().max())


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Casts parameters to float32 while the context lasts, then each back to its own dtype: some
    families keep routers in float32 whatever the model's dtype. Buffers such as rotary frequencies
    are float32 already."""
    before = [(parameter, parameter.dtype) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)
