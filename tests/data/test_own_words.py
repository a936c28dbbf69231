"""The model's own words: what is drawn, how documents begin and end, chat templates."""

import functools

import pytest
import torch
from conftest import VOCABULARY, byte_tokenizer, tiny_model

from disp_llm.config.words import OwnWordsConfig
from disp_llm.data.own_words import CHANCES, write
from disp_llm.data.randomness import random_stream
from disp_llm.models.architectures import FAMILIES

NOISE = functools.partial(random_stream, "words", 7)
BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>answer:{% endif %}"
)


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def slowly(model, tokenizer, number: int, length: int, settings: OwnWordsConfig) -> list[int]:
    """One sequence, each token from a forward pass over all those before it."""
    chances = torch.rand(CHANCES, length, generator=NOISE(number))
    ordinary = [t for t in range(len(tokenizer)) if t not in tokenizer.all_special_ids]

    def opening(place: int) -> int:
        kind, which = chances[1:, place].tolist()
        return ordinary[int(which * len(ordinary))] if kind < settings.self_random_start else BOS

    written = [opening(0)]
    while len(written) < length:
        if written[-1] == EOS:
            written.append(opening(len(written)))
            continue
        logits = model(torch.tensor([written]), use_cache=False).logits[0, -1, : len(tokenizer)]
        summed = (logits.float() / settings.self_temperature).softmax(-1).cumsum(-1)
        place = chances[0, len(written)] * summed[-1]
        written.append(int(torch.searchsorted(summed, place, right=True)))
    return written


def easily_ending(model):
    """The same model, which ends a document after some ten tokens."""
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    head.bias[EOS] = 6.0 * getattr(model.config, "logits_scaling", 1.0)
    return model


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_side_by_side_with_a_cache_is_the_same_as_one_by_one_without(model_type, tokenizer):
    model = easily_ending(tiny_model(model_type))
    settings = OwnWordsConfig(self_temperature=2.0, self_batch=2)
    words = write(model, tokenizer, 3 * 30, 30, settings, NOISE)
    assert words.tolist() == [slowly(model, tokenizer, n, 30, settings) for n in range(3)]
    assert (words == EOS).sum() > 1  # documents have ended
    assert words.max() < len(tokenizer) < VOCABULARY  # which knows fewer tokens than the model
