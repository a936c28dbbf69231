"""The KV cache of a model, by the name that its forward pass has for it.

It is `cache` since transformers 5.24, which warns of the older `past_key_values`.
"""

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedModel


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache that grows with what the model reads."""
    return DynamicCache(config=model.config)


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Arguments of a forward pass that goes on from a cache, and adds to it what it reads."""
    known = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    return {name: cache, "use_cache": True}
