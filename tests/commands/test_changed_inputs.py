"""What a run was made of, changed under it: refused by name, or taken with `--anyway`."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, must_refuse, must_run, run_command
from safetensors.torch import load_file, save_file

import disp_llm
from disp_llm.runs.folder import Run
from disp_llm.runs.lock import locked
from disp_llm.runs.ownership import LOCK, MARK, mark, temporary_prefix


@pytest.fixture
def inputs(llama_folder, text_file, tmp_path) -> dict[str, Path]:
    """A model and two texts of one's own."""
    model, text, test = tmp_path / "model", tmp_path / "text.txt", tmp_path / "test.txt"
    shutil.copytree(llama_folder, model)
    shutil.copyfile(text_file, text)
    test.write_text(text_file.read_text()[::-1])
    return {"model": model, "text": text, "eval_text": test}


@pytest.fixture
def run(inputs, tmp_path) -> Path:
    """A finished run of them."""
    folder = tmp_path / "run"
    must_run(
        "prune", inputs["model"], "--keep", 0.5, "--text", inputs["text"],
        "--eval-text", inputs["eval_text"], "--output-dir", folder, *SMALL,
    )  # fmt: skip
    return folder


def change(inputs: dict[str, Path], what: str) -> None:
    if what == "model":
        path = inputs["model"] / "model.safetensors"
        weights = load_file(path)
        name = min(weights)
        weights[name] = torch.nextafter(weights[name], torch.tensor(9.0))
        save_file(weights, path, metadata={"format": "pt"})
    else:
        inputs[what].write_text(inputs[what].read_text().replace("7", "8", 1))


def test_export_refuses_a_changed_text(run, inputs):
    change(inputs, "eval_text")
    done = must_refuse("export", run, "--keep", 0.7)
    assert "eval_text: is not what" in done.stderr
    assert not (run / "keep-0.7").exists()
    must_run("export", run, "--keep", 0.7, "--anyway")


def test_a_teacher_that_is_not_the_original_is_refused(run, inputs, tmp_path):
    change(inputs, "model")
    few = "--tokens 64 --length 32 --batch 1 --context 32 --windows 2 --dtype float32".split()
    command = ["recover", run / "keep-0.5", "--text", inputs["text"], *few, "--output-dir"]
    done = must_refuse(*command, tmp_path / "better")
    assert "is not what" in done.stderr
    assert not (tmp_path / "better").exists()
    must_run(*command, tmp_path / "better", "--anyway")


def test_another_data_type_is_refused(run, inputs, monkeypatch):
    (run / "selection.safetensors").unlink()
    monkeypatch.setattr("disp_llm.commands.session.dtype_name", lambda dtype: "bfloat16")
    done = must_refuse("prune", inputs["model"], "--output-dir", run, "--resume")
    assert "--dtype: is bfloat16 here" in done.stderr


def test_a_run_is_gone_on_with_from_any_folder(run, inputs, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere" / "deep"
    other.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    again = tmp_path / "relative"
    flags = ["--text", "text.txt", "--eval-text", "test.txt", "--output-dir", again, *SMALL]
    must_run("prune", "model", "--keep", 0.5, *flags)
    monkeypatch.chdir(other)
    must_run("export", os.path.relpath(again), "--keep", 0.7)
    own, moved = Run(run).result(), tmp_path / "moved"
    again.rename(moved)
    assert (
        own["models"][0]["measured"]["perplexity"]
        == Run(moved).result()["models"][0]["measured"]["perplexity"]
    )
    assert disp_llm.verify(moved)["ok"]


def test_models_of_a_run_that_was_moved_are_named_where_they_lie(run, inputs, tmp_path):
    few = "--tokens 64 --length 32 --batch 1 --context 32 --windows 2 --dtype float32".split()
    trained, moved, other = (tmp_path / name for name in ("trained", "moved", "other"))
    must_run(
        "recover", run / "keep-0.5", "--text", inputs["text"], *few, "--output-dir", trained
    )  # fmt: skip
    run.rename(moved)
    trained.rename(other)
    for command, model in (
        (["prune", "--output-dir", moved, "--resume"], moved / "keep-0.5"),
        (["export", moved, "--keep", 0.5], moved / "keep-0.5"),
        (["recover", "--output-dir", other, "--resume"], other / "model"),
    ):
        found = json.loads(must_run(*command, "--json").stdout)
        (made,) = found.get("models") or [found["model"]]
        assert (found["run"], made["folder"]) == (str(model.parent), str(model))


def test_resume_auto_begins_or_goes_on(inputs, tmp_path):
    folder = tmp_path / "new"
    command = [
        "prune", inputs["model"], "--keep", 0.5, "--text", inputs["text"], "--output-dir", folder,
        "--resume", "auto", "--json", *SMALL,
    ]  # fmt: skip
    first = must_run(*command)
    assert run_command(*command).stdout == first.stdout
    other = must_refuse(*command[:3], 0.6, *command[4:])
    assert "this run has keep" in other.stderr


def test_export_replaces_nothing_that_is_not_its_own(run, tmp_path):
    (run / "keep-0.7").mkdir()
    (run / "keep-0.7" / "mine.txt").write_text("mine")
    done = must_refuse("export", run, "--keep", 0.7)
    assert "holds something else" in done.stderr
    assert (run / "keep-0.7" / "mine.txt").read_text() == "mine"
    shutil.rmtree(run / "keep-0.7")
    must_run("export", run, "--keep", 0.7)
    assert disp_llm.verify(run)["ok"]


def test_a_folder_in_use_is_refused_and_an_empty_one_leaves_nothing(inputs, tmp_path):
    folder = tmp_path / "taken"
    command = ["prune", inputs["model"], "--text", inputs["text"], "--output-dir", folder, *SMALL]
    with locked(folder, "prune"):
        done = must_refuse(*command)
        assert f"is in use by process {os.getpid()}" in done.stderr
    assert not folder.exists()
    folder.mkdir()
    mark(folder, "prune")  # this, the next two lines are what a kill leaves
    (folder / f"{temporary_prefix(folder / 'model')}x").mkdir()
    (folder / LOCK).write_text("{")
    must_run(*command)
    assert list(folder.rglob(".*")) == [folder / MARK]


def test_verify_names_what_is_wrong(run, tmp_path):
    found = disp_llm.verify(run)
    assert found["ok"]
    done = must_run("verify", run / "keep-0.5")
    assert "whole" in done.stdout
    card = run / "keep-0.5" / "card.json"
    card.write_text(card.read_text().replace('"block_parameters": ', '"block_parameters": 1'))
    found = disp_llm.verify(run)["problems"]
    assert {problem["file"] for problem in found} == {str(card)}
    masks = run / "selection.safetensors"
    masks.write_bytes(masks.read_bytes()[:-1])
    done = must_refuse("verify", run, "--json")
    files = {problem["file"] for problem in json.loads(done.stdout)["problems"]}
    assert files == {str(masks), str(card)}
    must_refuse("verify", tmp_path / "nowhere")
