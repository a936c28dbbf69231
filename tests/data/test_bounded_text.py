"""Text of any size: read as far as a run needs, or refused in one line, before memory is gone."""

import json
import os
import socket
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, must_refuse

from disp_llm.commands.planning import tokens_wanted
from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data import reading, sources
from disp_llm.data.examples import read_examples
from disp_llm.data.in_memory import read_input
from disp_llm.data.sources import (
    GivenText,
    characters_for,
    read_documents,
    read_given,
    read_sources,
)
from disp_llm.data.tokens import load_tokens

from test_reading import COMPRESSED, TABLES  # isort: skip

MEGABYTE = 2**20


@pytest.fixture
def small(monkeypatch):
    """Limits that a test reaches in no time."""
    monkeypatch.setattr(reading, "LONGEST", 2 * MEGABYTE)
    monkeypatch.setattr(reading, "PIECE", 2**12)
    monkeypatch.setattr(sources, "LEAST", MEGABYTE)


def refused(path: Path, **options) -> str:
    with pytest.raises(InputError) as raised:
        read_documents([path], "text", **options)
    said = str(raised.value)
    assert said.startswith(f"text: {path}")
    assert "\n" not in said
    return said


def special_files(folder: Path) -> dict[str, Path]:
    """What can be opened as a file and is none, by what it is called."""
    os.mkfifo(folder / "pipe.toml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket.toml"))
    (folder / "device.toml").symlink_to("/dev/zero")
    return {what: folder / f"{what}.toml" for what in ("pipe", "socket", "device")}


@pytest.mark.parametrize("what", ["pipe", "socket", "device"])
def test_what_has_no_end_is_refused_before_it_is_opened(tmp_path, what):
    path = special_files(tmp_path)[what]
    assert f"a {what}, which cannot be read again: write it to a file" in refused(path)
    with pytest.raises(InputError, match=f"a {what}, which cannot be read again"):
        read_examples([path], "auto")


def test_a_command_does_not_wait_for_a_pipe(llama_folder, tmp_path):
    path = special_files(tmp_path)["pipe"]
    (tmp_path / "link.txt").symlink_to(path)
    for flags in (["--text", path], ["--eval-text", tmp_path / "link.txt"], ["--config", path]):
        done = must_refuse("prune", llama_folder, *flags, "--output-dir", tmp_path / "run")
        assert "write it to a file" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert "Too many levels" in refused(tmp_path / "loop.txt")


NO_END = {
    "zeros.txt": (b"\0", "is binary"), "zeros.csv": (b"\0", "is binary"),
    "line.jsonl": (b"a", "characters in line 1"), "line.csv": (b"a", "characters in line 1"),
    "value.json": (b" ", "characters; make a .jsonl file of it"),
    "cell.csv": (b'text\n"', "no whole row after line 1"),
    "table.parquet": (b"a", "is compressed twice"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("name", NO_END)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path, small, name, suffix):
    begin, said = NO_END[name]
    rest = b"a" * 999 + b"\n" if name == "cell.csv" else begin
    content = begin + rest * (40 * MEGABYTE // len(rest))
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSED[suffix](content))
    del content
    tracemalloc.start()
    try:
        assert said in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", *(suffix for suffix in COMPRESSED if suffix)])
@pytest.mark.parametrize("name", [*TABLES, "a.txt"])
def test_a_long_text_is_read_as_far_as_asked(tmp_path, name, suffix):
    documents = [f"{i:03} {'text ' * 20}" for i in range(100)]
    content = TABLES[name](documents) if name in TABLES else "".join(documents).encode()
    path = tmp_path / ((name + suffix) if name != "a.parquet" else name)
    path.write_bytes(COMPRESSED["" if name == "a.parquet" else suffix](content))
    whole = documents if name in TABLES else ["".join(documents)]
    with pytest.warns(UserWarning, match=rf"^text: the first 1,\d+ characters of {path.name} are"):
        found = read_documents([path], "text", characters=1000)
    expected = documents[:10] if name in TABLES else [whole[0][:1000]]
    assert found == expected
    enough = sum(map(len, documents))
    assert read_documents([path], "text", characters=enough) == whole  # and nothing is said


def test_files_behind_the_last_that_is_read_are_not_opened(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "zeros.txt")]
    for path in paths[:3]:
        path.write_text(path.stem * 60)
    paths[3].write_bytes(b"\0")
    with pytest.warns(UserWarning, match=r"120 characters of a\.txt, b\.txt, c\.txt, zeros\.txt"):
        assert read_documents(paths, "text", characters=100) == ["a" * 60, "b" * 60]
    with pytest.raises(InputError, match="is binary"):
        read_documents(paths, "text", characters=180)


@pytest.mark.parametrize(
    ("tokens", "characters"),
    [(0, 2**30), (1, 2**24), (500_000, 2**24), (2**21, 2**24), (2**21 + 1, 2**25), (10**8, 2**30)],
)
def test_how_much_is_read_follows_from_the_tokens_that_are_wanted(tokens, characters):
    assert characters_for(tokens) == characters


@pytest.mark.parametrize(
    ("apart", "tokens", "measured", "read"),
    [
        (False, 0, 1, [1]),
        (False, MEGABYTE // 4, 1, [2]),
        (False, 1, MEGABYTE // 40, [2]),  # it is the last tenth
        (True, 1, MEGABYTE // 4, [1, 2]),
        (True, 1, 0, [1, 3]),
    ],
)
def test_sources_are_read_as_far_as_a_run_needs(tmp_path, small, apart, tokens, measured, read):
    path = tmp_path / "long.txt"
    path.write_text("one line of text" * (3 * MEGABYTE // 16))
    config = TextConfig(text=(path,), eval_text=(path,) if apart else ())
    with pytest.warns(UserWarning, match="shuffle"):
        found = read_sources(config, tokens=tokens, measured=measured)
    texts = [source.text for source in found.learning] + [found.evaluation] * apart
    read_of = [text.documents for text in texts if isinstance(text, GivenText)]
    assert [sum(map(len, documents or [])) / MEGABYTE for documents in read_of] == read


def test_all_methods_of_a_comparison_read_the_same():
    config = PruneConfig("model")
    methods = ("learned", "fisher", "magnitude")
    wanted = {tokens_wanted(replace(config, method=method), 1) for method in methods}
    assert len(wanted) == 1
    assert wanted.pop() > config.learn.steps * config.training.tokens_per_step


def test_a_text_that_is_read_in_part_is_known_by_that_part(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LEAST", 50_000)
    text = "some words, again and again\n" * 3000
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "short.txt").write_text(text[:50_000])
    configs = [TextConfig(text=(tmp_path / name,)) for name in ("long.txt", "short.txt")]
    with pytest.warns(UserWarning, match="shuffle documents"):
        found = [read_sources(config, measured=1) for config in configs]
    part, same = (
        load_tokens(config, byte_tokenizer(), sources=read)
        for config, read in zip(configs, found, strict=True)
    )
    assert part.names["text_sha256"] == same.names["text_sha256"]
    assert torch.equal(part.corpus.streams[0], same.corpus.streams[0])
    assert torch.equal(part.evaluation, same.evaluation)


def test_a_data_set_is_read_as_far_as_asked(tmp_path):
    lines = "".join(json.dumps({"text": f"{i:09}."}) + "\n" for i in range(100))
    (tmp_path / "train.jsonl").write_text(lines)
    with pytest.warns(UserWarning, match="^dataset: the first 50 characters"):
        given = read_given([], str(tmp_path), "text", "train", characters=45)
    assert given is not None
    assert given.documents == [f"{i:09}." for i in range(5)]


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 1, 2)])
def test_a_tensor_of_more_than_rows_is_no_stream(shape):
    with pytest.raises(InputError, match=r"^text: holds something else than token ids"):
        read_input(torch.ones(shape, dtype=torch.long))
    for nested in ([[[1]]], [[1], [[2]]]):
        with pytest.raises(InputError, match="something else than token ids"):
            read_input(nested)
    rows = read_input(torch.arange(6).view(2, 3))
    assert isinstance(rows, GivenText)
    assert rows.tokens is not None
    assert rows.tokens.tolist() == list(range(6))
