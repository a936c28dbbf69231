"""The KV cache of a model: how many tokens it holds, and the name of its argument in the forward
pass, which is `cache` since transformers 5.24."""

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedModel


def cached_tokens(model: PreTrainedModel, length: int, batch: int) -> list[int]:
    """Returns how many tokens each layer caches for `batch` sequences. Layers with sliding windows
    cache only the earlier tokens that the next token sees."""
    layers = DynamicCache(config=model.config).layers
    windows = [getattr(layer, "sliding_window", None) or length + 1 for layer in layers]
    return [batch * min(length, window - 1) for window in windows]


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Returns the arguments of a forward pass that continues from a cache and extends it."""
    # Wrappers that pass unnamed arguments on exist only with the newer name.
    known = inspect.signature(model.forward).parameters
    name = "past_key_values" if "past_key_values" in known else "cache"
    return {name: cache, "use_cache": True}
