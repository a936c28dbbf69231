"""Bytes that a model takes: its weights as they are stored, and its KV cache.

T tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from disp_llm.models.kv_cache import empty_cache, with_cache


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights and of what else is saved with them, what is shared once; of a quantised
    weight its integers and scales."""
    parts = (part for tensor in model.state_dict().values() for part in _parts(tensor))
    return sum({part.data_ptr(): part.numel() * part.element_size() for part in parts}.values())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))


@torch.inference_mode()
def cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the KV cache after a prompt of T tokens, or of the state in its place."""
    cache = empty_cache(model)
    prompt = torch.ones(1, tokens, dtype=torch.long, device=model.device)
    model(prompt, logits_to_keep=1, **with_cache(model, cache))
    held = (value for layer in cache.layers for value in vars(layer).values())
    return sum(part.numel() * part.element_size() for part in held if isinstance(part, Tensor))
