"""What a program hands over: texts, ids or paths; anything else is refused, not guessed at."""

import io

import datasets
import pandas as pd
import pytest
import torch

from disp_llm.config.errors import InputError
from disp_llm.data import in_memory
from disp_llm.data.in_memory import read_input
from disp_llm.data.sources import GivenText


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "notes").mkdir()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is empty"),
        (["", " "], "is empty"),
        ([[]], "is empty"),
        (torch.tensor([]).long(), "is empty"),
        ("gone.txt", "no such file: gone.txt"),
        ("gone", "no such file: gone"),
        (["gone.txt"], "no such file: gone.txt"),
        (["a.txt", "gone"], "no such file: gone"),
        (["a.txt", "my gone.txt"], "no such file: my gone.txt"),
        (["a", None], "no text but None in row 2"),
        ([{"text": "a"}, {"text": None}], "no text but None as 'text' in row 2"),
        ([{"text": ["a"]}], r"no text but \['a'\] as 'text' in row 1"),
        ([{"body": "a"}], "no column 'text' in row 1, but 'body'"),
        (iter(["a", 3.5]), "no text but 3.5 in row 2"),
        (iter(["a\ud83d"]), "lone surrogate"),
        (["a", "b\ud83d"], "lone surrogate"),
        ("a b\ud83d", "lone surrogate"),
        ({"text": ["a b"]}, "cannot be read from dict"),
        (pd.DataFrame({"text": ["a b"]}), "cannot be read from DataFrame"),
        (b"bytes", "cannot be read from bytes"),
        ({"one", "two"}, "cannot be read from set"),
        (io.StringIO("a\nb\n"), "cannot be read from StringIO"),
        (3, "cannot be read from int"),
        ([1, 2.5], "something else than token ids"),
        ([1, True], "something else than token ids"),
        ([1, -1], "something else than token ids"),
        ([1, 2**70], "something else than token ids"),
        ([[1], "a"], "something else than token ids"),
        ([[1], 2], "something else than token ids"),
        (torch.tensor([1.0]), "something else than token ids"),
        (torch.tensor([True]), "something else than token ids"),
        (torch.tensor([-1]), "something else than token ids"),
    ],
)
def test_what_is_no_text_is_refused_by_its_setting(text, said):
    with pytest.raises(InputError, match=said) as raised:
        read_input(text, "eval_text")
    assert raised.value.field == "eval_text"
    assert "\n" not in str(raised.value)


def test_paths_and_texts_are_told_apart(tmp_path):
    path, folder = tmp_path / "a.txt", tmp_path / "notes"
    assert read_input(path) == (path,)
    assert read_input([path, "notes"]) == (path, folder.relative_to(tmp_path))
    assert read_input(["a.txt", "notes"]) == tuple(map(type(path), ("a.txt", "notes")))
    for texts in (["two words", "one"], ["hello", "world"], ["notes", "a text of words"]):
        given = read_input(texts)
        assert isinstance(given, GivenText)
        assert given.documents == texts


def test_only_what_has_no_length_is_read_in_part_and_that_is_said(monkeypatch):
    monkeypatch.setattr(in_memory, "WITHOUT_LENGTH", 5)
    rows = [{"text": "abc"}, {"text": "def"}, {"text": "ghi"}]
    whole = read_input(rows)
    assert isinstance(whole, GivenText)
    assert whole.documents == ["abc", "def", "ghi"]
    monkeypatch.setattr(in_memory, "EVERYTHING", 8)
    with pytest.warns(UserWarning, match="the first 9 characters of a data set are read"):
        large = read_input(datasets.Dataset.from_list([*rows, {"text": "jkl"}]))
    assert isinstance(large, GivenText)
    assert large.documents == whole.documents
    with pytest.warns(UserWarning, match="text: the first 6 characters"):
        part = read_input(row for row in rows)
    assert isinstance(part, GivenText)
    assert part.documents == ["abc", "def"]
