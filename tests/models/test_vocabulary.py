"""A cut vocabulary splits what stays as before and loses no text: three kinds of tokenizers."""

import json
import random

import pytest
import tokenizers
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from disp_llm.config.errors import InputError
from disp_llm.data.spelling import Spelling, byte_lengths
from disp_llm.models.vocabulary import (
    always_kept,
    closed,
    cut,
    most_used,
    parts_of,
    shared,
    tables_of,
)

WORDS = (
    "the rest of the tested tests interest the latest resting waters and the thickest thatched "
    "houses, whose owners owe others nothing; 1234 12 34 é è naïve façade 東京 東 ☃ "
).split()
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=60)) for seed in range(40)]


def byte_level(ignore_merges: bool = False) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def sentencepiece() -> tokenizers.Tokenizer:
    """Of Llama 2 and Gemma: merges over whole texts, bytes for unknown characters."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    made.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    tables = json.loads(made.to_str())
    tables["added_tokens"] = tables["added_tokens"][:2]  # bytes are no added tokens
    return tokenizers.Tokenizer.from_str(json.dumps(tables))


def unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Replace("▁", " ")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    return made


KINDS = {
    "byte level": byte_level(),
    "byte level, whole words first": byte_level(ignore_merges=True),
    "SentencePiece": sentencepiece(),
    "Unigram": unigram(),
}


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.lists(st.sampled_from(WORDS), max_size=12),
    st.text(max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_texts_of_kept_tokens_are_split_alike(kind, seed, share, words, other):
    whole = KINDS[kind]
    tables = json.loads(whole.to_str())
    draw = random.Random(seed)
    wanted = {token for token in range(whole.get_vocab_size()) if draw.random() < share}
    kept = closed(wanted | always_kept(tables), parts_of(tables))
    small = tokenizers.Tokenizer.from_str(json.dumps(cut(tables, kept)))
    old = sorted(kept)
    assert small.get_vocab_size() == len(old)
    for text in (" ".join(words), " ".join(words) + other):
        before = whole.encode(text).ids
        after = [old[token] for token in small.encode(text).ids]
        if kept.issuperset(before):
            assert after == before
        assert small.decode(small.encode(text).ids) == whole.decode(before)


def as_loaded(made: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_what_is_no_byte_pair_or_unigram_tokenizer_is_refused():
    with pytest.raises(InputError, match="kind WordPiece has no vocabulary that can be cut"):
        tables_of(as_loaded(tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))))
    with pytest.raises(InputError, match="kind BPE with end_of_word_suffix"):
        tables_of(as_loaded(tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))))
    with pytest.raises(InputError, match="kind str "):
        tables_of("a slow tokenizer")
    assert tables_of(as_loaded(byte_level()))["model"]["type"] == "BPE"


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_text_in_pieces_is_the_same_text(kind, seed, share, other):
    whole = KINDS[kind]
    tables = json.loads(whole.to_str())
    draw = random.Random(seed)
    wanted = {token for token in range(whole.get_vocab_size()) if draw.random() < share}
    kept = sorted(closed(wanted | always_kept(tables), parts_of(tables)))
    small = as_loaded(tokenizers.Tokenizer.from_str(json.dumps(cut(tables, kept))))
    spelling = Spelling.between(as_loaded(whole), small)
    tokens = torch.tensor(whole.encode(TEXTS[seed % len(TEXTS)] + other).ids)
    if spelling is None:
        assert len(kept) == whole.get_vocab_size()
        return
    pieces = spelling(tokens)
    assert len(pieces) == int(spelling.lengths(tokens).sum())
    by_token = [spelling(token[None]).tolist() for token in tokens]
    assert pieces.tolist() == [piece for one in by_token for piece in one]
    for token, spelled in zip(tokens.tolist(), by_token, strict=True):
        if token in kept:
            assert [kept[piece] for piece in spelled] == [token]
    assert small.backend_tokenizer.decode(pieces.tolist()) == whole.decode(tokens.tolist())
    if kind != "Unigram":  # which has no bytes of what it does not know
        lengths = [byte_lengths(one) for one in (as_loaded(whole), small)]
        assert int(lengths[0][tokens].sum()) == int(lengths[1][pieces].sum())


def test_added_tokens_have_the_bytes_of_their_text_and_special_ones_none():
    """As GPT-NeoX's runs of spaces."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["    ", "<tool_call>"])
    text = "if é:\n    y = <tool_call>1"
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert len(tokens) < len(text)
    lengths = byte_lengths(tokenizer)
    assert int(lengths[tokens].sum()) == len(text.encode())
    assert int(lengths[tokenizer.eos_token_id]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_used_tokens_stay_with_those_that_make_them(kind):
    whole = KINDS[kind]
    tables, size = json.loads(whole.to_str()), whole.get_vocab_size()
    least = len(always_kept(tables))
    used = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rarest = int(used.argmin())
    for number in range(least + 16, size, 7):
        kept = most_used(used, number, tables, [rarest])
        assert least <= len(kept) <= number
        assert rarest in kept
        assert closed(kept, parts_of(tables)) == set(kept)
        assert len(kept) >= number - 8  # what is left is room for no token with its parts
    assert most_used(used, size, tables, []) == list(range(size))
    with pytest.raises(InputError, match=rf"fewer than have to stay, {least}"):
        most_used(used, least - 1, tables, [])


def test_a_tokenizer_that_lacks_an_added_token_of_the_original_is_no_part_of_it():
    small, whole = byte_tokenizer(), byte_tokenizer()
    assert shared(small, whole) == list(range(len(whole)))
    whole.add_tokens(["<think>"], special_tokens=True)
    with pytest.raises(InputError, match="its vocabulary is no part of the original's"):
        shared(small, whole)


def test_a_tokenizer_tells_which_tokens_it_kept():
    whole = KINDS["byte level"]
    tables = json.loads(whole.to_str())
    kept = most_used(torch.zeros(whole.get_vocab_size()), 300, tables, [])
    small = as_loaded(tokenizers.Tokenizer.from_str(json.dumps(cut(tables, kept))))
    assert shared(small, as_loaded(whole)) == kept
    with pytest.raises(InputError, match="no part of the original's"):
        shared(as_loaded(KINDS["Unigram"]), as_loaded(whole))


def test_the_mark_of_a_words_end_is_one_byte():
    """As BioGPT's tokenizer has it: it stands for the space behind the word."""
    made = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = "the cat sat on the mat "
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator([text], trainer)
    assert int(byte_lengths(as_loaded(made))[made.encode(text).ids].sum()) == len(text)
