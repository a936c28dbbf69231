"""The KV cache of a model: one that grows, or with room for a length that is known; and the name
that the model's forward pass has for it, which is `cache` since transformers 5.24.

B batch, H heads, t tokens of a step, D width of a head.
"""

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class _Layer(DynamicLayer):
    """Keys and values of one layer, in room that is taken once; transformers' own copies all of
    them for every token, which comes to take longer than the model itself."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, t, D) to both and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = [
                part.new_empty(*part.shape[:2], self.length, part.shape[3])
                for part in (key_states, value_states)
            ]
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        for room, part in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, begin:end] = part
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values


def empty_cache(model: PreTrainedModel, length: int = 0) -> DynamicCache:
    """An empty cache.

    Args:
        length: tokens that it will hold; 0 = it grows with what the model reads.
    """
    cache = DynamicCache(config=model.config)
    if length:
        cache.layers = [
            _Layer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
    return cache


def cached_tokens(model: PreTrainedModel, length: int, batch: int) -> list[int]:
    """How many tokens each layer holds of so many sequences; one with a sliding window holds what
    the next token sees of those before it."""
    layers = empty_cache(model).layers
    windows = [getattr(layer, "sliding_window", None) or length + 1 for layer in layers]
    return [batch * min(length, window - 1) for window in windows]


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Arguments of a forward pass that goes on from a cache, and adds to it what it reads."""
    # Some wrappers hand on what they do not name, and have come with the newer name.
    known = inspect.signature(model.forward).parameters
    name = "past_key_values" if "past_key_values" in known else "cache"
    return {name: cache, "use_cache": True}
