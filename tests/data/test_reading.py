"""Files, folders and data sets: read as what they are, or refused in one line that says where."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import environment

from disp_llm.config.errors import InputError
from disp_llm.data.reading import read_dataset, read_documents, read_given

DOCUMENTS = ['one\ntwo, "quoted"', "größe \u2028 🙂", "", "three\r\nfour" * 30_000]
"""Line ends, quotes, other scripts, nothing at all, and more than Python's limit of a cell."""


def as_lines(values) -> bytes:
    return "\n".join(json.dumps({"id": 1, "text": value}) for value in values).encode() + b"\n"


def as_array(values) -> bytes:
    return json.dumps([{"id": 1, "text": value} for value in values], indent=1).encode()


def as_strings(values) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def as_csv(values) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "text"), *((1, value) for value in values)])
    return b"\xef\xbb\xbf" + file.getvalue().encode()  # as spreadsheets write it


def as_parquet(values) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"id": [1] * len(values), "text": values}), sink)
    return sink.getvalue().to_pybytes()


TABLES = {
    "a.jsonl": as_lines, "a.json": as_array, "b.json": as_strings, "c.json": as_lines,
    "a.csv": as_csv, "a.parquet": as_parquet, "A.JSONL": as_lines,
}  # fmt: skip

COMPRESSED = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}  # fmt: skip


def refused(path, column="text", field="text") -> str:
    """The one line that says why; it names setting and file."""
    with pytest.raises(InputError) as raised:
        read_documents([path], column, field)
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(f"{field}: {path}")
    return said


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", TABLES)
def test_every_kind_gives_the_same_documents(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSED[suffix](TABLES[name](DOCUMENTS)))
    assert read_documents([path], "text") == DOCUMENTS


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a.md", "a.py", "a"])
def test_plain_text_is_one_document(tmp_path, name, suffix):
    content = "größe\r\n{'not': 'JSON'}\rthird\n"
    (tmp_path / "plain").write_text(content, encoding="utf-8", newline="")
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSED[suffix](content.encode()))
    assert read_documents([path], "text") == [(tmp_path / "plain").read_text(encoding="utf-8")]


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    documents = ["a\u2028b", "c\x85d", "e\x0bf"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines) + "\n\n", newline="")
    assert read_documents([tmp_path / "a.jsonl"], "text") == documents


NO_TEXTS = {
    "null": None, "a number": 3.5, "true or false": True, "a list": ["a"], "an object": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_TEXTS)
@pytest.mark.parametrize(
    ("name", "place"), [("a.jsonl", "line 3"), ("a.json", "row 3"), ("c.json", "line 3")]
)
def test_what_is_no_text_is_never_learned_as_a_word(tmp_path, name, place, kind):
    path = tmp_path / name
    path.write_bytes(TABLES[name](["a", "b", NO_TEXTS[kind], "c"]))
    assert f"no text but {kind} as 'text' in {place}" in refused(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", None], "null as 'text' in row 2"),
        ([1, 2], "a number as 'text' in row 1"),
        ([True], "true or false as 'text' in row 1"),
        ([["a"], ["b"]], "a list as 'text' in row 1"),
        ([{"a": "b"}], "an object as 'text' in row 1"),
        ([b"a"], "bytes as 'text' in row 1"),
    ],
)
def test_what_is_no_text_in_columns(tmp_path, values, said):
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet(values))
    assert said in refused(path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(as_parquet(values))
    with pytest.raises(InputError, match=said) as raised:
        read_dataset(str(tmp_path / "set"), "text", "train", "eval_dataset")
    assert raised.value.field == "eval_dataset"


FAULTS = {
    "no UTF-8": ("a.txt", b"\xff\xfe\x00binary", "is not UTF-8"),
    "zero byte": ("a.raw", b"has a \x00 zero", "is binary"),
    "binary table": ("a.csv", b"text\na\x00\n", "is binary"),
    "UTF-16 table": ("a.csv", "text\nä\n".encode("utf-16"), "is not UTF-8"),
    "empty": ("a.txt", b"", "is empty"),
    "white space": ("a.md", b" \n", "is empty"),
    "no lines": ("a.jsonl", b"\n\n", "is empty"),
    "no rows": ("a.json", b"[]", "is empty"),
    "nothing": ("a.json", b"", "is empty"),
    "header alone": ("a.csv", b"id,text\n", "is empty"),
    "empty texts": ("a.parquet", as_parquet(["", ""]), "is empty"),
    "empty column": ("a.csv", b"id,text\n1,\n", "is empty"),
    "no key": ("a.jsonl", b'\n{"body": "x", "id": 1}\n', "'text' in line 2, but 'body', 'id'"),
    "string line": ("a.jsonl", b'"just a string"\n', "a string in line 1"),
    "cut line": ("a.jsonl", b'{"text": "a"}\n{"text": "b', "no JSON object in line 2"),
    "long number": ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "no JSON object in line 1"),
    "deep": ("a.jsonl", b"[" * 100_000, "no JSON object in line 1"),
    "half character": ("a.jsonl", rb'{"text": "a\ud83d"}', "lone surrogate) in line 1"),
    "no key in array": ("a.json", b'[{"text": "a"}, {"body": "x"}]', "in row 2, but 'body'"),
    "array of numbers": ("a.json", b'["a", 2]', "a number in row 2"),
    "columns": ("a.json", b'{"text": ["a", "b"]}', "a list as 'text' in row 1"),
    "cut array": ("a.json", b'[{"text": "a"},\n{"text": "b', "no whole JSON array (Untermin"),
    "no column": ("a.csv", b"id,body\n1,x\n", "no column 'text', but 'id', 'body'"),
    "semicolons": ("a.csv", b"id;text\n1;x\n", "no column 'text', but 'id;text'"),
    "column twice": ("a.csv", b"text,text\na,b\n", "no column 'text', but 'text', 'text'"),
    "no header": ("a.csv", b"\n\n", "no column 'text'"),
    "numbers": ("a.csv", b"text\n1\n2.5\ntrue\n", "no text but numbers as 'text'"),
    "few cells": ("a.csv", b'id,text\n1,"a\nb"\n2\n', "1 cells in line 4 and 2 columns"),
    "bare comma": ("a.csv", b"id,text\n1,a, b\n", "3 cells in line 2"),
    "cut cell": ("a.csv", b'id,text\n1,"a\nb', "no whole row in line 2"),
    "no parquet": ("a.parquet", b"not parquet at all", "no whole Parquet file"),
    "half a parquet": ("a.parquet", as_parquet(["a" * 999])[:300], "no whole Parquet file"),
    "no parquet column": ("a.parquet", as_parquet(["a"]).replace(b"text", b"body"), "no column"),
    "wrong magic": ("a.txt.gz", b"plain text", "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_files_are_named_with_what_is_wrong(tmp_path, fault):
    name, content, said = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refused(path, field="eval_text")


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSED if suffix])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_damaged_compression(tmp_path, suffix, name):
    path = tmp_path / (name + suffix)
    whole = COMPRESSED[suffix](os.urandom(5000))
    for content in (whole[:3], whole[: len(whole) // 2], whole[:-1], b"something else"):
        path.write_bytes(content)
        assert "is damaged" in refused(path)
    for content in (b"", COMPRESSED[suffix](b"") if name != "a.parquet" else b""):
        path.write_bytes(content)
        assert "is empty" in refused(path)


def test_missing_files_are_named(tmp_path):
    for name in ("gone.txt", "gone.jsonl.gz", "gone.txt.zst", "gone.parquet"):
        assert "No such file" in refused(tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "notes"
    (found / "b" / ".cache").mkdir(parents=True)
    (found / "b" / ".cache" / "x.bin").write_bytes(b"\0")
    (found / ".hidden").write_bytes(b"\0")
    (found / "c.txt").write_text("third")
    (found / "a.md").write_text("first")
    (found / "b" / "x.jsonl.gz").write_bytes(gzip.compress(as_lines(["second"])))
    return found


def test_a_folder_is_all_its_files_in_order_of_name(folder):
    given = read_given([folder], "", "text", "train")
    assert given is not None
    assert given.documents == ["first", "second", "third"]
    assert given.name == "notes/"
    (folder / "also").symlink_to(folder / "b")
    assert read_documents([folder], "text") == ["first", "second", "second", "third"]


def test_folders_that_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty")
    (folder / "b" / "up").symlink_to(folder)
    assert "holds up, a link to a folder above" in refused(folder)
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
        ("set", "body", "no column 'body', but 'id', 'text'"),
        ("set:default:absent", "text", "cannot load"),
        ("absent-set", "text", "cannot load"),
        ("damaged", "text", "cannot load"),
    ],
)
def test_data_sets_are_refused_by_their_own_setting(tmp_path, monkeypatch, name, column, said):
    monkeypatch.chdir(tmp_path)
    for folder, content in (("set", as_lines(["a"])), ("damaged", b'{"text": "a"}\n{"text": "b')):
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


def test_no_kind_of_file_needs_a_cache(tmp_path):
    """In a process of its own, whose caches lie below a file and so can never be made."""
    (tmp_path / "file").write_text("")
    for name, made in TABLES.items():
        (tmp_path / name).write_bytes(made(["x"]))
    places = {key: str(tmp_path / "file" / key) for key in ("HF_HOME", "HF_DATASETS_CACHE")}
    program = (
        "import sys, pathlib; from disp_llm.data.reading import read_documents;"
        "print(read_documents(map(pathlib.Path, sys.argv[1:]), 'text'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(tmp_path / name) for name in TABLES)],
        capture_output=True, text=True, timeout=60, env=environment() | places, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() == str(["x"] * len(TABLES))


def test_streams_are_what_a_straight_reading_gives(tmp_path):
    """The kinds of before: whole files of plain text, and `str` of what is in a table."""
    lines = as_lines(DOCUMENTS).replace(b"\n", b"\r\n")
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n")
    (tmp_path / "a.parquet").write_bytes(as_parquet(DOCUMENTS))
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\nb\rc\n\n".encode())
    (tmp_path / "a.tex").write_bytes(b"\\LaTeX")
    paths = [tmp_path / name for name in ("a.txt", "a.jsonl", "a.tex", "a.parquet")]
    straight = [
        paths[0].read_text(encoding="utf-8"),
        *(str(json.loads(line)["text"]) for line in paths[1].read_text().split("\n") if line),
        paths[2].read_text(encoding="utf-8"),
        *(str(row) for row in datasets.Dataset.from_parquet(str(paths[3]))["text"]),
    ]
    assert read_documents(paths, "text") == straight
