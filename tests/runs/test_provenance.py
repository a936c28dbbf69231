"""Where figures come from: recorded with every run, size and row, and never made up."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from disp_llm.config.prune import PruneConfig
from disp_llm.runs import provenance as recorded
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import mark
from disp_llm.runs.provenance import commit, provenance
from disp_llm.runs.settings import begin_run

FACTS = {"command", "seed", "date", "commit", "versions", "hardware"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one file of code, from which disp-llm seems to run."""

    def git(*arguments: str) -> str:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *names, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "m")
    monkeypatch.setattr(recorded, "CHECKOUT", tmp_path)
    commit.cache_clear()
    yield tmp_path, git("rev-parse", "HEAD")
    commit.cache_clear()


def test_the_commit_is_that_of_the_checkout(checkout):
    folder, head = checkout
    (folder / "results.json").write_text("[]")  # no code
    assert commit() == head
    (folder / "src" / "code.py").write_text("2\n")
    assert commit() == head, "the code that runs is that of the first call"
    commit.cache_clear()
    assert commit() == f"{head}-dirty"


def test_there_is_no_commit_outside_of_a_checkout_or_without_git(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() == ""
    monkeypatch.undo()
    monkeypatch.setattr(recorded, "CHECKOUT", tmp_path / "src")
    commit.cache_clear()
    assert commit() == ""


def test_a_run_and_each_of_its_sizes_say_where_they_come_from(small_run):
    _, result = small_run
    assert result.keys() >= FACTS
    for size in result["models"]:
        assert size["provenance"].keys() == FACTS
        assert size["provenance"]["command"] == result["command"]
        assert datetime.fromisoformat(size["provenance"]["date"]).tzinfo == UTC
    assert "resumed" not in result


def begun(tmp_path: Path) -> Path:
    """A run folder of ours in which nothing has begun."""
    mark(tmp_path, "prune")
    return tmp_path


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    folder = begun(tmp_path)
    begin_run(PruneConfig("m", output_dir=folder), "first", dtype="float32")
    again = PruneConfig("m", output_dir=folder, resume=True)
    begin_run(again, "second")
    assert "resumed" not in Run(folder).result(), "the same machine"
    told = tmp_path / "cpuinfo"
    told.write_text("model name : another\n")
    monkeypatch.setattr(recorded, "CPU_INFO", told)
    for _ in range(2):
        begin_run(again, "third")
    (attempt,) = Run(folder).result()["resumed"]
    assert attempt["command"] == "third"
    assert attempt["hardware"]["cpu"] == "another" != Run(folder).result()["hardware"]["cpu"]


def test_committed_rows_state_the_command_of_the_experiment(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "experiments"))
    from run import of_comparison

    here = provenance(3, "disp-llm compare m --text /home/someone/text.txt")
    row = {"method": "flap", "error": None, "provenance": here}
    asked = dict.fromkeys(("keep", "steps", "length", "batch", "align"), 1) | {"model": "m"}
    source = {"model": "m", "text": "t", "eval_text": "e"}
    found = {
        "asked": asked,
        "rows": [row, {"error": None}],
        "original": dict(row),
        "source": source,
    }
    kept = of_comparison(found, "disp-llm compare m --text $TEXT")
    assert "someone" not in json.dumps(kept)
    for told in (kept["rows"][0], kept["original"]):
        assert told["provenance"] == here | {"command": "disp-llm compare m --text $TEXT"}
    assert "provenance" not in kept["rows"][1], "nothing is made up of an old row"
