"""The KV cache of a model: how many tokens it holds, and the name that the model's forward pass has
for it, which is `cache` since transformers 5.24."""

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedModel


def cached_tokens(model: PreTrainedModel, length: int, batch: int) -> list[int]:
    """How many tokens each layer holds of so many sequences; one with a sliding window holds what
    the next token sees of those before it."""
    layers = DynamicCache(config=model.config).layers
    windows = [getattr(layer, "sliding_window", None) or length + 1 for layer in layers]
    return [batch * min(length, window - 1) for window in windows]


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Arguments of a forward pass that goes on from a cache, and adds to it what it reads."""
    # Some wrappers hand on what they do not name, and have come with the newer name.
    known = inspect.signature(model.forward).parameters
    name = "past_key_values" if "past_key_values" in known else "cache"
    return {name: cache, "use_cache": True}
