"""A model of fewer tokens computes what the whole one computes of them, in every architecture."""

import pytest
import torch
from configurations import ARCHITECTURES, VOCABULARY, cases
from conftest import unusual_prunable

from disp_llm.config.errors import InputError
from disp_llm.models.trimming import require_rows, with_tokens

REFUSED = {"gemma3n_text": "", "gemma4_text": "embed_tokens_per_layer"}
"""Architectures with other tables by token."""


@torch.no_grad()
@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_logits_of_what_stays_are_the_same(model_type):
    model = unusual_prunable(model_type).model
    if model_type in REFUSED:
        with pytest.raises(InputError, match="has a row for each token too"):
            require_rows(model)
        return
    require_rows(model)
    kept = sorted({0, 1, 2, 3, *range(5, VOCABULARY, 3)})
    small = with_tokens(model, kept)
    ids = torch.randint(4, len(kept), (2, 17), generator=torch.Generator().manual_seed(0))
    whole = model(torch.tensor(kept)[ids]).logits[..., kept]
    assert (small(ids).logits - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert small.config.get_text_config().vocab_size == len(kept)
    rows = small.get_input_embeddings().weight
    assert torch.equal(rows, model.get_input_embeddings().weight[kept])
    assert model.get_input_embeddings().num_embeddings == VOCABULARY  # it is left as it was
    shared = set(map(id, small.parameters())) & set(map(id, model.parameters()))
    assert shared


def test_tokens_that_settings_name_have_their_new_numbers_once():
    """Where a new number is an old one of another token, too."""
    model = unusual_prunable("llama").model
    last = VOCABULARY - 1
    model.config.eos_token_id, model.config.bos_token_id = [last, 7], last
    model.generation_config.eos_token_id = last
    kept = sorted({*range(0, VOCABULARY, 2), 7, last})
    small = with_tokens(model, kept)
    numbers = {old: new for new, old in enumerate(kept)}
    assert small.config.eos_token_id == [numbers[last], numbers[7]]
    assert small.config.bos_token_id == small.generation_config.eos_token_id == numbers[last]
    assert model.config.bos_token_id == last


def test_tokens_that_are_gone_are_no_longer_named():
    """Else an old number would name another token, or none: `pad_token_id` often lies behind all
    tokens of the tokenizer."""
    model = unusual_prunable("llama").model
    model.config.pad_token_id = VOCABULARY - 1
    model.generation_config.suppress_tokens = [5, 9]
    small = with_tokens(model, [*range(5), *range(6, 40)])
    assert small.config.pad_token_id is None
    assert small.generation_config.suppress_tokens == [8]


@pytest.mark.parametrize("kind", [dict, list])
def test_sequences_of_tokens_have_their_new_numbers_or_are_gone(kind):
    model = unusual_prunable("llama").model
    settings = model.generation_config
    settings.bad_words_ids = [[7], [5, 7], [9, 3]]
    bias = {(5,): 1.0, (9, 3): -2.0}
    listed = [[list(tokens), number] for tokens, number in bias.items()]
    settings.sequence_bias = bias if kind is dict else listed
    small = with_tokens(model, [*range(5), *range(6, 40)]).generation_config
    assert small.bad_words_ids == [[6], [8, 3]]
    assert small.sequence_bias == [[[8, 3], -2.0]]
    assert settings.bad_words_ids == [[7], [5, 7], [9, 3]]
    gone = with_tokens(model, [0, 1, 2, 4]).generation_config
    assert gone.bad_words_ids is gone.sequence_bias is None
