"""Folders and hub data sets, and what commands say of texts."""

import gzip
import json
import os

import datasets
import pytest
from conftest import must_refuse, run_command

from disp_llm.config.errors import InputError
from disp_llm.data.sources import read_documents, read_given


def lines_of(values) -> bytes:
    return "\n".join(json.dumps({"id": 1, "text": value}) for value in values).encode() + b"\n"


def refused(path) -> str:
    with pytest.raises(InputError) as raised:
        read_documents([path], "text")
    assert str(raised.value).startswith(f"text: {path}")
    return str(raised.value)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "notes"
    (found / "b" / ".cache").mkdir(parents=True)
    (found / "b" / ".cache" / "x.bin").write_bytes(b"\0")
    (found / ".hidden").write_bytes(b"\0")
    (found / "c.txt").write_text("third")
    (found / "a.md").write_text("first")
    (found / "b" / "x.jsonl.gz").write_bytes(gzip.compress(lines_of(["second"])))
    return found


def test_a_folder_is_all_its_files_in_order_of_name(folder):
    given = read_given([folder], "", "text", "train")
    assert given is not None
    assert given.documents == ["first", "second", "third"]
    assert given.name == "notes/"


def test_folders_that_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty")
    (folder / "b" / "up").symlink_to(folder)  # whose files would be read again and again
    assert "holds b/up, which is none of .txt" in refused(folder)
    (folder / "b" / "up").unlink()
    for name in ("b/logo.png", "LICENSE", "notes.gz"):
        (folder / name).write_text("text")
        assert f"holds {name}, which is none of .txt" in refused(folder)
        (folder / name).unlink()
    os.mkfifo(folder / "pipe.txt")  # which would never end
    assert "holds pipe.txt" in refused(folder)
    (folder / "pipe.txt").unlink()
    (folder / "gone.txt").symlink_to(tmp_path / "gone")
    assert "holds gone.txt" in refused(folder)
    (folder / "gone.txt").unlink()
    (folder / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty\.txt is empty"):
        read_documents([folder], "text")


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("set", "body", "no column 'body' in row 1, but 'id', 'text'"),
        ("set:default:absent", "text", "cannot load"),
        ("absent-set", "text", "cannot load"),
        ("damaged", "text", "cannot load"),
    ],
)
def test_data_sets_are_refused_by_their_own_setting(tmp_path, monkeypatch, name, column, said):
    monkeypatch.chdir(tmp_path)
    for folder, content in (("set", lines_of(["a"])), ("damaged", b'{"text": "a"}\n{"text": "b')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said) as raised:
        read_given([], name, column, "train", "eval_text")
    assert raised.value.field == "eval_dataset"
    assert "\n" not in str(raised.value)


def test_a_data_set_is_read_and_named_without_its_folder(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "", "b"]}).to_json(tmp_path / "train.jsonl")
    given = read_given([], f"{tmp_path}:default", "text", "train")
    assert given is not None
    assert given.documents == ["a", "", "b"]
    assert given.name == f"{tmp_path.name}/:default"
    assert given.field == "dataset"


@pytest.mark.parametrize("flag", ["--text", "--eval-text"])
def test_the_command_names_flag_file_and_line(llama_folder, text_file, tmp_path, flag):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(lines_of(["a", None]))
    texts = {"--text": text_file, "--eval-text": text_file} | {flag: bad}
    flags = [part for pair in texts.items() for part in pair]
    done = must_refuse("prune", llama_folder, *flags, "--output-dir", tmp_path / "run")
    assert f"disp-llm: {flag}: {bad} has no text but None as 'text' in line 2; " in done.stderr
    assert not (tmp_path / "run").exists()


def test_evaluation_says_what_it_was_measured_on(llama_folder, text_file):
    done = run_command("eval", llama_folder, "--text", text_file, "--context", 32, "--json")
    found, given = json.loads(done.stdout), read_given([text_file], "", "text", "test")
    assert given is not None
    assert (found["text"], found["text_sha256"]) == (text_file.name, given.sha256)
