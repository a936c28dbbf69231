"""Files, folders and data sets: read as what they are, or refused in one line that says where."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from disp_llm.config.errors import InputError
from disp_llm.data.sources import read_dataset, read_documents

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


def as_parquet(values, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"id": [1] * len(values), "text": values}), sink, **options)
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
    if name == "a.parquet" and suffix:
        assert "is compressed twice" in refused(path)
    else:
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


@pytest.mark.parametrize("value", [None, 3.5, True, ["a"], {"a": 1}])
@pytest.mark.parametrize(
    ("name", "place"), [("a.jsonl", "line 3"), ("a.json", "row 3"), ("c.json", "line 3")]
)
def test_what_is_no_text_is_never_learned_as_a_word(tmp_path, name, place, value):
    path = tmp_path / name
    path.write_bytes(TABLES[name](["a", "b", value, "c"]))
    assert f"no text but {value!r} as 'text' in {place}" in refused(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", None], "None as 'text' in row 2"),
        ([1, 2], "1 as 'text' in row 1"),
        ([True], "True as 'text' in row 1"),
        ([["a"], ["b"]], r"\['a'\] as 'text' in row 1"),
        ([{"a": "b"}], "{'a': 'b'} as 'text' in row 1"),
        ([b"a"], "b'a' as 'text' in row 1"),
    ],
)
def test_what_is_no_text_in_columns(tmp_path, values, said):
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet(values))
    assert re.search(said, refused(path))
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
    "number line": ("a.jsonl", b"17\n", "no text but 17 in line 1"),
    "cut line": ("a.jsonl", b'{"text": "a"}\n{"text": "b', "no JSON object in line 2"),
    "long number": ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "no JSON object in line 1"),
    "deep": ("a.jsonl", b"[" * 100_000, "no JSON object in line 1"),
    "half character": ("a.jsonl", rb'{"text": "a\ud83d"}', "lone surrogate) in line 1"),
    "no key in array": ("a.json", b'[{"text": "a"}, {"body": "x"}]', "in row 2, but 'body'"),
    "array of numbers": ("a.json", b'["a", 2]', "no text but 2 in row 2"),
    "columns": ("a.json", b'{"text": ["a", "b"]}', "['a', 'b'] as 'text' in row 1"),
    "cut array": ("a.json", b'[{"text": "a"},\n{"text": "b', "no whole JSON array (Untermin"),
    "no column": ("a.csv", b"id,body\n1,x\n", "no column 'text', but 'id', 'body'"),
    "semicolons": ("a.csv", b"id;text\n1;x\n", "no column 'text', but 'id;text'"),
    "column twice": ("a.csv", b"text,text\na,b\n", "has 2 columns 'text'; rename all but one"),
    "no header": ("a.csv", b"\n\n", "no column 'text'"),
    "few cells": ("a.csv", b'id,text\n1,"a\nb"\n2\n', "has not 2 cells, as columns, in line 4"),
    "bare comma": ("a.csv", b"id,text\n1,a, b\n", "has not 2 cells, as columns, in line 2"),
    "cut cell": ("a.csv", b'id,text\n1,"a\nb', "no whole row after line 1"),
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


def test_parquet_is_checked_against_its_checksums_where_it_has_some(tmp_path):
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    content = as_parquet(["one text", "other text"], write_page_checksum=True, **plain)
    (tmp_path / "a.parquet").write_bytes(content.replace(b"other text", b"ether text"))
    assert "is damaged" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("cut", [1, 20, 100, 300])
@pytest.mark.parametrize("name", TABLES)
def test_cut_and_changed_files_never_give_a_traceback(tmp_path, name, cut):
    """Nor more than one line, whatever the libraries say of them."""
    content, path = TABLES[name](["a text", "größe, 2"] * 5), tmp_path / name
    for damaged in (content[:-cut], content[:cut] + b"\xe2\x28\n" + content[cut:], content[cut:]):
        path.write_bytes(damaged)
        try:
            said = " ".join(read_documents([path], "text"))  # may still be whole, but text
        except InputError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSED if suffix])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_damaged_compression(tmp_path, suffix, name):
    path = tmp_path / (name + suffix)
    whole = COMPRESSED[suffix](as_lines([os.urandom(2500).hex()]))
    for content in (whole[:3], whole[: len(whole) // 2], whole[:-1], b"something else"):
        path.write_bytes(content)
        assert "is damaged" in refused(path)
    for content in (b"", COMPRESSED[suffix](b"")):
        path.write_bytes(content)
        assert "is empty" in refused(path)


def test_missing_files_are_named(tmp_path):
    for name in ("gone.txt", "gone.jsonl.gz", "gone.txt.zst", "gone.parquet"):
        assert "No such file" in refused(tmp_path / name)


def test_no_kind_of_file_needs_a_cache(tmp_path, monkeypatch):
    """With the place of the cache below a file, where no folder can be made."""
    (tmp_path / "set").mkdir()
    for name, made in TABLES.items():
        (tmp_path / "set" / name).write_bytes(made(["x"]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "set" / "a.json" / "cache")
    assert read_documents([tmp_path / "set"], "text") == ["x"] * len(TABLES)
    with pytest.raises(InputError, match=r"cannot load .*Not a directory.*HF_HOME"):
        read_dataset(str(tmp_path / "set"), "text", "train")


def test_streams_are_what_a_straight_reading_gives(tmp_path):
    """The kinds of before: whole files of plain text, and `str` of what is in a table."""
    lines = as_lines(DOCUMENTS).replace(b"\n", b"\r\n")
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n")
    (tmp_path / "a.parquet").write_bytes(as_parquet(DOCUMENTS))
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\nb\rc\n\n".encode())
    (tmp_path / "a.tex").write_bytes(b"\\LaTeX")
    paths = [tmp_path / name for name in ("a.txt", "a.jsonl", "a.tex", "a.parquet")]
    straight = [
        paths[0].read_text(encoding="utf-8-sig"),  # a byte order mark is no text
        *(str(json.loads(line)["text"]) for line in paths[1].read_text().split("\n") if line),
        paths[2].read_text(encoding="utf-8"),
        *(str(row) for row in datasets.Dataset.from_parquet(str(paths[3]))["text"]),
    ]
    assert read_documents(paths, "text") == straight
