"""`--minutes`: the pace fixes the number of steps, which is then part of the run."""

import json
import tomllib

import pytest
import torch
from conftest import SMALL, run_command
from safetensors.torch import load_file

from disp_llm.training import pace

TIMED = [flag for flag in SMALL if flag not in ("--steps", "6")]


def prune(llama_folder, text_file, folder, *flags):
    done = run_command(
        "prune", llama_folder, "--text", text_file, "--output-dir", folder, "--json",
        *TIMED, *flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def timed(llama_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed") / "run"
    return folder, prune(llama_folder, text_file, folder, "--minutes", 0.05)


def test_learning_takes_the_time_that_is_left(timed):
    folder, result = timed
    assert result["steps"] > 3 * pace.FEWEST
    assert result["seconds"] < 9
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, result["steps"] + 1))
    assert result["tokens_seen"] == result["steps"] * 32 + 4 * 32
    assert tomllib.loads((folder / "config.toml").read_text())["learn"]["minutes"] == 0.05


def test_it_is_the_run_of_so_many_steps(timed, llama_folder, text_file, tmp_path):
    folder, result = timed
    prune(llama_folder, text_file, tmp_path / "run", "--steps", result["steps"])
    ours, theirs = (load_file(f / "masks.safetensors") for f in (folder, tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_goes_on_takes_the_same_steps(
    timed, llama_folder, text_file, tmp_path, monkeypatch
):
    """Killed twice while learning; the pace of the later attempts does not matter."""
    folder = tmp_path / "run"
    steps = timed[1]["steps"]
    monkeypatch.setattr(pace, "_steps_in", lambda problem, take: steps)
    flags = ("--text", text_file, "--output-dir", folder, *TIMED, "--minutes", 0.05)
    for killed_at in (steps // 3, 2 * steps // 3):
        with monkeypatch.context() as patch:
            patch.setattr("disp_llm.runs.folder.MetricsLog.append", killing(killed_at))
            again = ["--resume"] if folder.exists() else []
            done = run_command("prune", llama_folder, *flags, *again)
            assert "Killed" in done.stderr
        monkeypatch.setattr(pace, "_steps_in", lambda problem, take: 1)
    done = run_command("prune", llama_folder, *flags, "--resume", "--json")
    assert json.loads(done.stdout)["steps"] == steps
    ours, theirs = (load_file(f / "masks.safetensors") for f in (folder, timed[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Killed(Exception):
    """Stands for a kill between two steps."""


def killing(step: int):
    """An `append` of the log of steps that kills the run at a step."""

    def append(log, figures: dict) -> None:
        if figures["step"] == step:
            raise Killed

    return append


def test_only_methods_that_learn_take_minutes(llama_folder, text_file, tmp_path):
    done = run_command(
        "prune", llama_folder, "--method", "flap", "--minutes", 1, "--text", text_file,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 2
    assert "--minutes" in done.stderr
    assert not (tmp_path / "run").exists()
