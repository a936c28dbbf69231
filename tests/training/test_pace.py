"""`--minutes`: the pace fixes the number of steps, which is then part of the run."""

import json
import tomllib

import pytest
import together
import torch
from conftest import (
    BEGUN,
    SMALL,
    must_refuse,
    must_run,
    problem_of,
    run_command,
    tiny_prunable,
    with_config,
)
from safetensors.torch import load_file

from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.runs.job import Process
from disp_llm.training import pace
from disp_llm.training.blocks import WORTH_COMPILING, compiles
from disp_llm.training.learning import learn

TIMED = [*(flag for flag in SMALL if flag not in ("--steps", "6")), "--compile", "no"]


def prune(llama_folder, text_file, folder, *flags):
    done = must_run(
        "prune", llama_folder, "--text", text_file, "--output-dir", folder, "--json",
        *TIMED, *flags,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def timed(llama_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed") / "run"
    return folder, prune(llama_folder, text_file, folder, "--minutes", 0.03)


def test_the_steps_belong_to_the_run(timed):
    folder, result = timed
    assert result["steps"] >= pace.FEWEST
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, result["steps"] + 1))
    assert result["tokens_seen"] == result["steps"] * 32 + 4 * 32
    assert tomllib.loads((folder / "config.toml").read_text())["learn"]["minutes"] == 0.03


@pytest.mark.parametrize(("minutes", "late"), [(0.001, True), (5, False)])
def test_time_that_was_not_met_is_said(
    minutes, late, llama_folder, text_file, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(pace, "_steps_in", lambda problem, take: pace.FEWEST)
    run_command(
        "prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run", *TIMED,
        "--minutes", minutes,
    )  # fmt: skip
    assert caplog.text.count(f"`minutes` is {minutes:g}") == late
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result.get("late_s", 0.0) <= result["seconds"]
    assert ("late_s" in result) == late


@pytest.mark.parametrize(
    ("left", "steps"),
    [
        (20.0, 40),  # too few to win back the seconds that compiling takes
        (60.0, 240),
        (31.0, 124),
        (1.0, pace.FEWEST),
        (-9.0, pace.FEWEST),
    ],
)
def test_steps_are_the_time_over_the_pace(left, steps, text_file, tmp_path, monkeypatch):
    """Half a second a step, a quarter once compiled."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    seconds = {"no": 0.5, "yes": 0.25}
    monkeypatch.setattr(pace, "_seconds_per_step", lambda problem, take, how: seconds[how])
    monkeypatch.setattr(pace, "_seconds_left", lambda problem: left)
    monkeypatch.setattr(pace, "can_be_worth_compiling", lambda target: True)
    timed = with_config(problem, learn=LearnConfig(minutes=1))
    timed.job.run.update(**BEGUN)
    assert pace.planned_steps(timed, lambda problem, steps: None) == steps
    assert timed.job.run.result()["steps"] == steps


@pytest.mark.parametrize(("left", "steps"), [(14.0, 28), (1.0, pace.FEWEST), (29.9, 59)])
def test_what_compiling_took_is_held_against_the_time(
    left, steps, text_file, tmp_path, monkeypatch
):
    """There was time for 62 steps of half a second, until compiling had taken the most of it."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    seconds, remaining = {"no": 0.5, "yes": 0.5}, iter([31.0, left, left])
    monkeypatch.setattr(pace, "_seconds_per_step", lambda problem, take, how: seconds[how])
    monkeypatch.setattr(pace, "_seconds_left", lambda problem: next(remaining))
    monkeypatch.setattr(pace, "can_be_worth_compiling", lambda target: True)
    timed = with_config(problem, learn=LearnConfig(minutes=1))
    timed.job.run.update(**BEGUN)
    assert pace.planned_steps(timed, lambda problem, steps: None) == steps


@pytest.mark.parametrize("tool", ["g++", "g++-of-nowhere"])
@pytest.mark.parametrize("steps", [WORTH_COMPILING - 1, WORTH_COMPILING])
def test_auto_compiles_what_is_long_enough_where_there_is_a_compiler(tool, steps, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name if name == "g++" else None)
    monkeypatch.setenv("CXX", tool)
    wanted = steps >= WORTH_COMPILING and tool == "g++"
    assert compiles(TrainingConfig(), steps, tiny_prunable("llama")) == wanted
    assert compiles(TrainingConfig(compile="yes"), steps, tiny_prunable("llama"))
    assert not compiles(TrainingConfig(), steps, tiny_prunable("mixtral"))


def test_what_is_left_is_less_what_has_passed_and_what_measuring_takes(
    text_file, tmp_path, monkeypatch
):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    timed = with_config(problem, learn=LearnConfig(minutes=10), keep=(0.8, 0.5))
    timed.job.run.update(**BEGUN, seconds=100.0, measuring_original_s=20.0)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: timed.job.began + 50.0)
    measuring = 20.0 * 2 * pace.MEASUREMENTS_A_SIZE
    assert pace._seconds_left(timed) == pytest.approx(600 - 100 - 50 - measuring)
    timed.job.run.update(scoring_original_s=30.0)  # on a suite, once a size
    assert pace._seconds_left(timed) == pytest.approx(600 - 100 - 50 - measuring - 2 * 30)


def test_it_is_the_run_of_so_many_steps(timed, llama_folder, text_file, tmp_path):
    folder, result = timed
    prune(llama_folder, text_file, tmp_path / "run", "--steps", result["steps"])
    ours, theirs = (load_file(f / "selection.safetensors") for f in (folder, tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_goes_on_takes_the_same_steps(
    timed, llama_folder, text_file, tmp_path, monkeypatch
):
    """Killed twice while learning; the pace of the later attempts does not matter."""
    folder = tmp_path / "run"
    steps = timed[1]["steps"]
    monkeypatch.setattr(pace, "_steps_in", lambda problem, take: steps)
    flags = ("--text", text_file, "--output-dir", folder, *TIMED, "--minutes", 0.03)
    for killed_at in (steps // 3, 2 * steps // 3):
        with monkeypatch.context() as patch:
            patch.setattr("disp_llm.runs.metrics.MetricsLog.append", killing(killed_at))
            again = ["--resume"] if folder.exists() else []
            done = run_command("prune", llama_folder, *flags, *again)
            assert "Killed" in done.stderr
        monkeypatch.setattr(pace, "_steps_in", lambda problem, take: 1)
    done = run_command("prune", llama_folder, *flags, "--resume", "--json")
    assert json.loads(done.stdout)["steps"] == steps
    ours, theirs = (load_file(f / "selection.safetensors") for f in (folder, timed[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_several_processes_agree_on_the_steps(llama_folder, text_file, tmp_path):
    """All of them time the steps, and none of these is tracked."""
    first, other = together.run(
        together.COMMAND, "prune", llama_folder, "--text", text_file, "--output-dir",
        tmp_path / "run", "--json", *TIMED, "--minutes", 0.05,
    )  # fmt: skip
    assert first.returncode == other.returncode == 0, (first.stderr, other.stderr)
    result = json.loads(first.stdout)
    assert result["steps"] >= pace.FEWEST
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == result["steps"]


def test_steps_that_are_timed_are_not_tracked(text_file, tmp_path, monkeypatch):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    tracked = []
    monkeypatch.setattr(Process, "track", lambda self, of, figures, step: tracked.append(step))
    start = torch.zeros(problem.budget.layout.entries)
    seconds = pace._seconds_per_step(problem, lambda p, steps: learn(p, start, steps), "no")
    assert seconds > 0
    assert not tracked
    learn(problem, start, 2)
    assert tracked == [1, 2]


class Killed(Exception):
    """Stands for a kill between two steps."""


def killing(step: int):
    """An `append` of the log of steps that kills the run at a step."""

    def append(log, figures: dict) -> None:
        if figures["step"] == step:
            raise Killed

    return append


@pytest.mark.parametrize("method", ["flap", "gisp"])
def test_only_methods_that_learn_take_minutes(method, llama_folder, text_file, tmp_path):
    done = must_refuse(
        "prune", llama_folder, "--method", method, "--minutes", 1, "--text", text_file,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert "--minutes: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_steps_that_are_timed_write_no_checkpoint(text_file, tmp_path):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    folders = []

    def take(timed, steps: int) -> None:
        learn(timed, torch.zeros(timed.budget.layout.entries), steps)
        folders.append(list(timed.job.run.folder.rglob("*.safetensors")))

    pace._seconds_per_step(problem, take, "no")
    assert folders == [[]]
