"""Models of tiny wrappers, and prompts with a picture for them, or with a sound."""

from functools import cache
from typing import Any

import torch
import transformers
from configurations import SHAPE, VOCABULARY
from conftest import random_weights, sites_with, tiny_model
from tiny_wrappers import BEGIN, END, PICTURE, TINY
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of


def tiny_of(name: str) -> Any:
    """A tiny model of an architecture, or a tiny wrapper."""
    return tiny_wrapper(name) if name in TINY else tiny_model(name)


def tiny_wrapper_config(model_type: str, /, **text: Any) -> transformers.PreTrainedConfig:
    """A tiny configuration; the language model's with these changes."""
    tiny = TINY[model_type]
    return CONFIG_MAPPING[model_type](
        text_config=SHAPE | tiny.text | text, **{f"{tiny.sense}_config": tiny.tower}, **tiny.more
    )


def tiny_wrapper(model_type: str, seed: int = 0, **text: Any) -> Any:
    """The model, with random weights."""
    torch.manual_seed(seed)
    config = tiny_wrapper_config(model_type, **text)
    return random_weights(transformers.AutoModelForMultimodalLM.from_config(config))


def prunable_wrapper(
    model_type: str,
    heads: bool = False,
    branches: bool = False,
    experts: bool = False,
    **text: Any,
) -> PrunableModel:
    """The model with the row of its language model; heads and experts are sites where they are
    asked for and there are such as can go."""
    model = tiny_wrapper(model_type, **text)
    family = family_of(model.config)
    sites = sites_with(
        heads and family.can_lose_heads, branches, experts and family.experts is not None
    )
    return PrunableModel(model, family, sites)


@cache
def picture(model_type: str) -> dict[str, torch.Tensor]:
    """A prompt with a picture in its middle, as the model takes it."""
    tiny, noise = TINY[model_type], torch.Generator().manual_seed(1)
    words = torch.randint(4, 256, (12,), generator=noise).tolist()
    tokens = [*words[:5], BEGIN, *[PICTURE] * tiny.features, END, *words[5:]]
    given = {name: torch.randn(shape, generator=noise) for name, shape in tiny.shown.items()}
    given |= {name: torch.tensor(numbers) for name, numbers in tiny.numbers.items()}
    ids = torch.tensor([tokens])
    if tiny.types:
        given[tiny.types] = (ids == PICTURE).long()
    assert max(tokens) < VOCABULARY
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | given
