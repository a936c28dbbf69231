"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from disp_llm.runs.files import atomic
from disp_llm.runs.ownership import FACTS


def test_a_folder_that_is_cut_off_between_two_names_keeps_the_old_one(tmp_path, monkeypatch):
    place = tmp_path / "folder"
    write(place, "old")
    rename = os.replace
    calls = iter((rename, interrupted, rename))
    monkeypatch.setattr(os, "replace", lambda *names: next(calls)(*names))
    with pytest.raises(KeyboardInterrupt):
        write(place, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (place / FACTS).read_text() == "old"


def write(place: Path, content: str) -> None:
    with atomic(place) as temporary:
        temporary.mkdir()
        (temporary / FACTS).write_text(content)


def interrupted(*names: object) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt
