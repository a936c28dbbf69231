"""Pieces of a text give the tokens of the whole, with every kind of tokenizer."""

from functools import cache

import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from disp_llm.data import tokens
from disp_llm.data.tokens import SEPARATOR, tokenize
from disp_llm.models.embedded import model_file, speech_files

SCRIPTS = "Größe, façade. 她在图书馆里读书。これは日本語の文章です。한국어 문장도 있어요. Русский. "
CODE = 'def f(x):\n    """So."""\n    for i in range(100_000):\n\t\treturn x[i] + 3.14159e-10\n\n\n'
EMOJI = "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301\u0323 ﬁ Å \u200d\ufeff\u00a0"
ADDED = "<|end|>"

DIGITS = (
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and GPT-4 part text: numbers from the left in threes."""

PARTED = pre_tokenizers.Split(Regex(DIGITS), "isolated")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
FOLDED = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
SYLLABLES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def speech() -> str:
    return speech_files()[0][-1].read_text(encoding="utf-8")


def trained(model, parts, normalizer=None, only_for_training=False, trainer=None, post=None):
    """A tokenizer that has learned from a speech, code and other scripts."""
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = parts
    special = ["<unk>", "<s>"] + (SYLLABLES if trainer is None else [])
    usual = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([speech()[:20_000] + CODE * 20 + SCRIPTS], trainer or usual)
    if only_for_training:
        made.pre_tokenizer = None
    if post is not None:
        made.post_processor = post
    made.add_special_tokens([AddedToken(ADDED, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def bpe(**options) -> models.BPE:
    return models.BPE(unk_token="<unk>", fuse_unk=True, **options)


def unigram() -> dict:
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )  # fmt: skip
    return {"model": models.Unigram(), "trainer": trainer}


def metaspace(scheme: str) -> pre_tokenizers.Metaspace:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


def wordpiece() -> dict:
    trainer = trainers.WordPieceTrainer(
        vocab_size=1200, special_tokens=["<unk>", "<s>"], show_progress=False
    )  # fmt: skip
    model = models.WordPiece(unk_token="<unk>", max_input_chars_per_word=50)
    return {"model": model, "trainer": trainer, "parts": pre_tokenizers.BertPreTokenizer()}


@cache
def tokenizer_of(kind: str):
    if kind == "smollm2":
        return AutoTokenizer.from_pretrained(model_file().parent, gguf_file=model_file().name)
    if kind == "bytes":
        return byte_tokenizer(bos=True)
    trimmed = processors.ByteLevel(trim_offsets=True)
    options = {
        "numbers in threes": lambda: {
            "model": bpe(), "parts": pre_tokenizers.Sequence([PARTED, BYTES]),
        },
        "roberta": lambda: {
            "model": bpe(), "parts": pre_tokenizers.ByteLevel(), "post": trimmed,
        },
        "llama, one word": lambda: {
            "model": bpe(byte_fallback=True), "parts": metaspace("first"), "normalizer": SPACES,
            "only_for_training": True,
        },
        "metaspace": lambda: {"model": bpe(byte_fallback=True), "parts": metaspace("first")},
        "unigram": lambda: unigram() | {"parts": metaspace("always"), "normalizer": FOLDED},
        "unigram, one word": lambda: unigram()
        | {"parts": metaspace("always"), "only_for_training": True},
        "wordpiece": lambda: wordpiece() | {"normalizer": normalizers.BertNormalizer()},
    }  # fmt: skip
    return trained(**options[kind]())


KINDS = [
    "smollm2", "bytes", "numbers in threes", "roberta", "llama, one word", "metaspace", "unigram",
    "unigram, one word", "wordpiece",
]  # fmt: skip


def whole(documents, tokenizer) -> list[int]:
    """One call over the joined text."""
    text = SEPARATOR.join(documents)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def in_pieces(documents, tokenizer, piece: int, overlap: float = 1 / 4, agreed: int = 3):
    """The stream, without BOS, of short pieces; and the longest text that was tokenised at once."""
    lengths = [0]
    tokens_of = tokens._tokens_of

    def recorded(text, *rest):
        lengths.append(len(text))
        return tokens_of(text, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PIECE", piece)
        patch.setattr(tokens, "OVERLAP", overlap)
        patch.setattr(tokens, "AGREED", agreed)
        patch.setattr(tokens, "_tokens_of", recorded)
        stream = tokenize(documents, tokenizer)
    has_bos = tokens.usual_bos(tokenizer) is not None
    return stream[int(has_bos) :].tolist(), max(lengths)


part = st.one_of(
    st.integers(0, 8000).flatmap(
        lambda start: st.integers(1, 400).map(lambda length: speech()[start : start + length])
    ),
    st.sampled_from([CODE, SCRIPTS, EMOJI, ADDED + "  ", "\r\n", SEPARATOR, "x"]),
    st.tuples(
        st.sampled_from([*" \n\ta0-好🙂\u0301é", " \n", "the", "12"]),
        st.integers(1, 300),
    ).map(lambda pair: pair[0] * pair[1]),
    st.text(max_size=60),
    st.text("0123456789", min_size=1, max_size=300),
    st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=300),
    st.text("天地玄黄宇宙洪荒日月盈昃", min_size=1, max_size=200),
)  # fmt: skip
document = st.lists(part, max_size=8).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(
    documents=st.lists(document, min_size=1, max_size=12),
    piece=st.integers(40, 700),
    agreed=st.integers(1, 5),
)
def test_pieces_of_any_size_give_the_tokens_of_the_whole(kind, documents, piece, agreed):
    tokenizer = tokenizer_of(kind)
    found, _ = in_pieces(documents, tokenizer, piece, agreed=agreed)
    assert found == whole(documents, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_running_text_is_never_tokenised_at_once(kind):
    tokenizer = tokenizer_of(kind)
    for documents in ([speech()], speech().split("\n"), [SCRIPTS * 400], [CODE * 400]):
        found, longest = in_pieces(documents, tokenizer, 2048, 1 / 4, 8)
        assert found == whole(documents, tokenizer)
        # The best way through one word is not that of its parts: it is read at once.
        assert (longest == 2048) == (kind != "unigram, one word")


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [2**13, tokens.PIECE])
def test_all_speeches(kind, piece):
    """3.6 MB, of which none is tokenised at once."""
    documents = [path.read_text(encoding="utf-8") for path in speech_files()[0]]
    tokenizer = tokenizer_of(kind)
    found, longest = in_pieces(documents, tokenizer, piece, tokens.OVERLAP, tokens.AGREED)
    assert found == whole(documents, tokenizer)
    assert longest == piece or kind == "unigram, one word"
