"""Commands that meet a damaged file: one line before anything is loaded, and a hint that works."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
from conftest import SMALL, must_refuse, must_run, run_command
from damage import names, outcome

from disp_llm.commands import sizes
from disp_llm.commands.prune import prune
from disp_llm.commands.report import PruneResult
from disp_llm.runs.files import CHECKSUM, write_checked_json
from disp_llm.runs.settings import stored_config


@pytest.fixture
def run(small_run, tmp_path):
    """A finished run of one's own."""
    folder = tmp_path / "run"
    shutil.copytree(small_run[0], folder)
    return folder


def refused(done, path) -> bool:
    """Exit code 2 and one line that names the file."""
    complaints = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
    return done.returncode == 2 and len(complaints) == 1 and str(path) in complaints[0]


def without_checksum(values: dict) -> dict:
    """What was written in a file that says itself whether it was changed."""
    return {key: value for key, value in values.items() if key != CHECKSUM}


def test_a_selection_is_made_again_as_its_hint_says(run, llama_folder):
    path = run / "selection.safetensors"
    whole, figures = path.read_bytes(), json.loads((run / "result.json").read_text())
    path.write_bytes(whole[:100])
    done = run_command("report", run)
    assert refused(done, path)
    assert names(outcome(lambda: PruneResult(run, figures).masks(0.8)), path)
    assert "delete it: `resume` makes it again" in done.stderr
    path.unlink()
    must_run("prune", llama_folder, "--output-dir", run, "--resume")
    assert path.read_bytes() == whole
    again = json.loads((run / "result.json").read_text())
    assert [m["measured"]["perplexity"] for m in again["models"]] == [
        m["measured"]["perplexity"] for m in figures["models"]
    ]
    must_run("report", run)


def test_a_size_that_was_deleted_is_forgotten_or_made_again(run, llama_folder):
    """What `export` had made to save room, and one of the run's own."""
    must_run("export", run, "--keep", 0.6, "--no-measure")
    shutil.rmtree(run / "keep-0.6")
    must_refuse("verify", run)
    must_run("export", run, "--keep", 0.7, "--no-measure")
    result = json.loads((run / "result.json").read_text())
    assert [model["size"] for model in result["models"]] == ["0.5", "0.8", "0.7"]
    assert not any("0.6" in name for name in result["files"])
    shutil.rmtree(run / "keep-0.8")
    made = run_command("export", run, "--keep", 0.65, "--no-measure")
    assert made.returncode == 0, made.stderr  # its page needs no weights
    must_run("prune", llama_folder, "--output-dir", run, "--resume", "--json")
    assert (run / "keep-0.8" / "model.safetensors").exists()
    must_run("report", run)


def test_a_deleted_size_that_could_not_be_made_again_is_made_the_next_time(
    run, llama_folder, monkeypatch
):
    def full(*told: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    again = ("prune", llama_folder, "--output-dir", run, "--resume", "--json")
    shutil.rmtree(run / "keep-0.8")
    with monkeypatch.context() as patch:
        patch.setattr(sizes, "write_card", full)
        must_refuse(*again)
    done = must_run(*again)
    assert [model["size"] for model in json.loads(done.stdout)["models"]] == ["0.5", "0.8"]


@pytest.mark.parametrize("deleted", [["keep-0.6", "keep-0.6-plain"], ["keep-0.6-plain"]])
def test_what_export_converted_and_somebody_deleted_is_forgotten(
    deleted, llama_folder, text_file, tmp_path
):
    run = tmp_path / "run"
    command = ["prune", llama_folder, "--for", "anywhere", "--text", text_file, "--output-dir", run]
    must_run(*command, *SMALL)
    must_run("export", run, "--keep", 0.6, "--no-measure")
    for name in deleted:
        shutil.rmtree(run / name)
    must_run("prune", "--output-dir", run, "--resume")


def test_figures_of_a_finished_run_are_checked_when_they_are_asked_for(run, llama_folder):
    path = run / "result.json"
    whole = json.loads(path.read_text().replace('"perplexity": ', '"perplexity": "about" , "x": '))
    write_checked_json(path, without_checksum(whole))
    asked = run_command("prune", llama_folder, "--output-dir", run, "--resume", "--json")
    assert refused(asked, path)
    config = replace(stored_config(run), output_dir=run, resume=True)
    found = outcome(lambda: prune(llama_folder, config=config).sizes)
    assert names(found, path)
    assert "perplexity: expected float, got str" in found.what


@pytest.mark.parametrize("key", ["command", "source", "before", "versions"])
def test_recover_goes_on_with_sound_figures_only(run, text_file, tmp_path, key):
    """What is refused is refused before training, and what can be measured again is."""
    folder = tmp_path / "recovered"
    command = [
        "recover", run / "keep-0.5", "--output-dir", folder, "--tokens", 64, "--length", 32,
        "--context", 32, "--windows", 2, "--text", text_file, "--device", "cpu",
        "--dtype", "float32",
    ]  # fmt: skip
    must_run(*command)
    path = folder / "result.json"
    whole = without_checksum(json.loads(path.read_text())) | {"status": "running"}
    write_checked_json(path, whole | {key: 5})
    assert refused(run_command(*command, "--resume"), path)
    write_checked_json(path, {k: v for k, v in whole.items() if k != key})
    done = run_command(*command, "--resume")
    if key in ("command", "versions"):
        assert refused(done, path)
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(path.read_text())[key] == whole[key]
