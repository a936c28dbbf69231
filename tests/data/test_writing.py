"""The model's own words: what is drawn, how documents begin and end, chat templates."""

import functools
from pathlib import Path

import pytest
import torch
from configurations import ARCHITECTURES, VOCABULARY, cases
from conftest import byte_tokenizer, tiny_model

from disp_lab.settings import CompareConfig
from disp_llm.config.bounds import require_declared
from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.config.words import OwnWordsConfig
from disp_llm.data.own_words import (
    CHANCES,
    SEPARATOR,
    Openings,
    fitting_batch,
    write_sequences,
)
from disp_llm.data.randomness import random_stream
from disp_llm.data.written import Needs, Writer
from disp_llm.runs.folder import Run

NOISE = functools.partial(random_stream, "words", 7)
BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>answer:{% endif %}"
)


def write(model, tokenizer, tokens: int, length: int, settings: OwnWordsConfig, noise):
    """As many sequences of a length as hold that many tokens, a batch after the other."""
    openings = Openings.of(model, tokenizer, settings.self_chat > 0)
    count, at_once = -(-tokens // length), settings.self_batch or fitting_batch(model, length)
    numbers = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    return torch.cat(
        [
            write_sequences(model, openings, some, length, settings, noise, lambda place: None)
            for some in numbers
        ]
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
    head, tokens = model.get_output_embeddings(), torch.tensor([[BOS]])
    head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    before = model(tokens).logits[0, 0, EOS]
    head.bias[EOS] = 1.0
    head.bias[EOS] = 7.0 / (model(tokens).logits[0, 0, EOS] - before)  # whatever scales logits
    return model


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_side_by_side_with_a_cache_is_the_same_as_one_by_one_without(model_type, tokenizer):
    model = easily_ending(tiny_model(model_type))
    settings = OwnWordsConfig(self_temperature=2.0, self_batch=2)
    words = write(model, tokenizer, 3 * 30, 30, settings, NOISE)
    assert words.tolist() == [slowly(model, tokenizer, n, 30, settings) for n in range(3)]
    assert (words == EOS).sum() > 1  # documents have ended
    assert words.max() < len(tokenizer) < VOCABULARY  # which knows fewer tokens than the model


def test_what_is_written_does_not_depend_on_what_is_written_beside_it(tokenizer):
    model = tiny_model("llama")
    rows = [
        write(model, tokenizer, 5 * 16, 16, OwnWordsConfig(self_batch=batch), NOISE)
        for batch in (1, 2, 5)
    ]
    assert rows[0].tolist() == rows[1].tolist() == rows[2].tolist()
    assert len({tuple(row) for row in rows[0].tolist()}) == 5  # each by numbers of its own
    other = functools.partial(random_stream, "words", 8)
    assert not torch.equal(rows[0], write(model, tokenizer, 80, 16, OwnWordsConfig(), other))


@pytest.mark.parametrize(("share", "plain"), [(0.0, True), (1.0, False)])
def test_documents_begin_with_bos_or_a_random_ordinary_token(share, plain, tokenizer):
    settings = OwnWordsConfig(self_random_start=share)
    first = write(tiny_model("llama"), tokenizer, 40 * 2, 2, settings, NOISE)[:, 0]
    assert (first == BOS).all() if plain else len(set(first.tolist())) > 20
    assert plain or not set(first.tolist()) & set(tokenizer.all_special_ids)


def test_a_random_token_follows_bos_where_the_tokenizer_adds_one():
    settings = OwnWordsConfig(self_random_start=1.0)
    words = write(tiny_model("gemma"), byte_tokenizer(bos=True), 40 * 2, 2, settings, NOISE)
    assert (words[:, 0] == BOS).all()
    assert len(set(words[:, 1].tolist())) > 20


def test_without_bos_documents_begin_with_eos_and_it_is_not_repeated():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    settings = OwnWordsConfig(self_random_start=0.0)
    words = write(easily_ending(tiny_model("llama")), tokenizer, 4 * 60, 60, settings, NOISE)
    assert (words[:, 0] == EOS).all()
    assert (words == EOS).sum() > 10
    model = easily_ending(tiny_model("llama"))
    for number, row in enumerate(words.tolist()):  # the model's own draws, and nothing between
        chances = torch.rand(CHANCES, 60, generator=NOISE(number))[0]
        for place in range(1, 60, 7):
            logits = model(torch.tensor([row[:place]])).logits[0, -1, : len(tokenizer)]
            summed = logits.softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(summed, chances[place] * summed[-1], right=True)
            assert row[place] == int(drawn)


def test_a_low_temperature_writes_the_likeliest_tokens(tokenizer):
    model = tiny_model("llama")
    cold = OwnWordsConfig(self_temperature=1e-4, self_random_start=0.0)
    greedy = OwnWordsConfig(self_greedy=100, self_random_start=0.0)
    first_few = OwnWordsConfig(self_greedy=4, self_random_start=0.0)
    rows = [write(model, tokenizer, 20, 20, s, NOISE)[0].tolist() for s in (cold, greedy)]
    assert rows[0] == rows[1]
    mixed = write(model, tokenizer, 20, 20, first_few, NOISE)[0].tolist()
    assert mixed[:5] == rows[0][:5]
    assert mixed != rows[0]


def test_every_token_is_drawn_as_often_as_the_model_predicts_it(tokenizer):
    """A frequency test: 4,000 draws after the same token, over all tokens at once."""
    model = tiny_model("llama")
    settings = OwnWordsConfig(self_random_start=0.0, self_batch=1000)
    drawn = write(model, tokenizer, 4000 * 2, 2, settings, NOISE)[:, 1]
    logits = model(torch.tensor([[BOS]])).logits[0, -1, : len(tokenizer)]
    expected = 4000 * logits.softmax(-1)
    found = torch.bincount(drawn, minlength=len(tokenizer))
    often = expected > 20
    excess = ((found - expected) ** 2 / expected)[often]
    assert often.sum() > 10
    assert excess.mean() < 2  # 1 on average where the draws are true


def test_a_chat_has_a_question_and_an_answer():
    tokenizer = chat_tokenizer()
    settings = OwnWordsConfig(self_chat=1.0)
    model = easily_ending(tiny_model("llama"))
    words = write(model, tokenizer, 8 * 100, 100, settings, NOISE)
    before, between = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("<s>user:", "</s><s>answer:")
    )
    for row in words.tolist():
        assert row[: len(before)] == before
        ends = [i for i, token in enumerate(row) if token == EOS]
        for number, end in enumerate(ends):
            follows = between if number % 2 == 0 else [EOS, *before]
            rest = row[end : end + len(follows)]
            assert rest == follows[: len(rest)]
    assert (words == EOS).sum() > 16


def test_half_of_the_documents_are_chats_and_half_of_the_others_begin_randomly():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<s>", "#")
    settings = OwnWordsConfig(self_chat=0.5, self_random_start=0.5)
    words = write(tiny_model("llama"), tokenizer, 200 * 6, 6, settings, NOISE)
    user = torch.tensor(tokenizer("#user:", add_special_tokens=False)["input_ids"])
    chats = (words == user).all(1)
    plain = (words[:, 0] == BOS) & ~chats
    assert 80 < chats.sum() < 120
    assert 30 < plain.sum() < 70


def test_without_a_template_there_are_no_chats(tokenizer):
    settings = OwnWordsConfig(self_chat=1.0, self_random_start=0.0)
    words = write(tiny_model("llama"), tokenizer, 6, 6, settings, NOISE)
    plain = write(
        tiny_model("llama"), tokenizer, 6, 6, OwnWordsConfig(self_random_start=0.0), NOISE
    )
    assert torch.equal(words, plain)


def test_the_end_of_a_turn_ends_no_plain_document():
    """Where EOS is what ends a turn, the model itself writes whose turn comes next."""
    openings = Openings.of(tiny_model("llama"), chat_tokenizer(), chat=False)
    assert openings.turn_ends == {EOS}
    assert not openings.ends
    assert Openings.of(tiny_model("llama"), byte_tokenizer(), chat=False).ends == {EOS}


def test_a_bos_that_opens_a_turn_begins_no_plain_document():
    """After it the model writes who speaks; a model whose tokenizer adds BOS to every text knows it
    as the beginning of one."""
    for adds, start in ((False, ()), (True, (BOS,))):
        tokenizer = byte_tokenizer(bos=adds)
        assert Openings.of(tiny_model("llama"), tokenizer, chat=False).start == (BOS,)
        tokenizer.chat_template = TEMPLATE
        assert Openings.of(tiny_model("llama"), tokenizer, chat=False).start == start
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [SEPARATOR]})
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert Openings.of(tiny_model("llama"), tokenizer, chat=False).start == (separator,)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "nothing", "{{ 1 / 0 ]"])
def test_a_template_that_cannot_be_used_is_refused(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="self_chat: the chat template"):
        write(tiny_model("llama"), tokenizer, 8, 8, OwnWordsConfig(self_chat=0.5), NOISE)


def test_a_template_that_nobody_asked_for_need_not_be_usable():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert Openings.of(tiny_model("llama"), tokenizer, chat=False).ends == {EOS}


def test_a_model_that_predicts_no_numbers_is_refused(tokenizer):
    model = tiny_model("llama")
    model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match="dtype: the model predicts what is no finite number"):
        write(model, tokenizer, 8, 8, OwnWordsConfig(), NOISE)


def test_progress_counts_tokens(tokenizer, tmp_path):
    told: list[tuple[int, int]] = []
    writer = Writer(
        tiny_model("llama"),
        tokenizer,
        OwnWordsConfig(self_batch=2),
        length=4,
        seed=0,
        revision="of a test",
        needs=Needs(3 * 4, 0),
        run=Run(tmp_path),
        records=False,
        progress=lambda stage, done, total, figures: told.append((done, total)),
    )
    writer.write()
    assert told == [(2, 12), (4, 12), (6, 12), (8, 12), (9, 12), (10, 12), (11, 12), (12, 12)]


def test_as_many_at_once_as_fit(monkeypatch):
    model = tiny_model("llama")
    assert fitting_batch(model, 128) == 32
    monkeypatch.setattr("disp_llm.data.own_words.free_memory", lambda device: 500_000)
    # 0.6 · 500,000 bytes; a sequence takes 2 · 3 layers · 2 heads · 8 · 128 tokens · 4 bytes of
    # cache, and 16 · 320 where tokens are drawn
    assert fitting_batch(model, 128) == 300_000 // (49_152 + 5_120)


@pytest.mark.parametrize(
    "settings",
    [
        {"self_temperature": 0.0},
        {"self_random_start": 1.5},
        {"self_chat": -0.1},
        {"self_batch": -1},
        {"self_tokens": -1},
        {"self_greedy": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError) as raised:
        require_declared(OwnWordsConfig(**settings))
    assert raised.value.field in settings


@pytest.mark.parametrize("texts", [("self",), ("a.txt", "self"), ("general",), ("mine.toml",)])
def test_settings_of_own_words_are_taken_where_they_may_be_written(texts):
    words = OwnWordsConfig(self_tokens=64, self_chat=0.5)
    PruneConfig("m", text=TextConfig(text=tuple(map(Path, texts))), words=words).validate()


@pytest.mark.parametrize("command", [PruneConfig, RecoverConfig, CompareConfig])
@pytest.mark.parametrize("named", ["text", "examples"])
def test_settings_of_own_words_are_refused_where_none_are_written(command, named):
    text, words = TextConfig(**{named: (Path("a.txt"),)}), OwnWordsConfig(self_tokens=64)
    with pytest.raises(InputError, match=r"self_tokens: .*none are written.*add `text` self"):
        command("m", text=text, words=words).validate()
    command("m", text=text).validate()
    command("m", words=words).validate()
