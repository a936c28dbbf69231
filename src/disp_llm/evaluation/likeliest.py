"""Text that a model writes, always taking the likeliest token."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import GenerationConfig, PreTrainedModel


@contextlib.contextmanager
def likeliest(model: PreTrainedModel) -> Iterator[Any]:
    """While the context lasts, `generate`, which this gives, takes the likeliest token: a model may
    come with penalties, beams and tokens that it must not write, which `do_sample=False` leaves as
    they are, as do settings that are handed to `generate`."""
    own: Any = model.generation_config
    ends = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    try:
        yield model.generate
    finally:
        model.generation_config = own
