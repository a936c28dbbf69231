"""Whether what was exported computes what the masked model does."""

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
"""A float32 error of logits, relative to the largest, that rounding does not explain."""


def warn_of_error(errors: dict[str, float], name: str) -> None:
    """Warns where an export computes something else than the masked model."""
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
    """max|Δlogit| / max|logit| of the compact model against the dense one, which now runs masked.

    It is taken in the dtype of the run and in float32 (weights are cast there and back, which loses
    nothing). The float32 figure is left out, with a warning, where the memory for it is missing.
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
        with context(model):  # one after the other: there is room for one in float32
            logits.append(model(tokens, use_cache=False).logits.float())
    wanted, got = logits
    return float((wanted - got).abs().max() / wanted.abs().max())


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """While the context lasts, parameters are float32; then each is what it was, for some families
    keep routers in float32 whatever the model is. Rotary frequencies and the like are float32
    buffers, and stay so."""
    before = [(parameter, parameter.dtype) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)
