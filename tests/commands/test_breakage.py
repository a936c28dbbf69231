"""What once lost data or was wrong in silence, each by the command that showed it."""

import json
import re
import shutil
import signal
import threading
from pathlib import Path

import fresh
import pytest
import torch
import transformers
from conftest import SMALL, must_refuse, must_run, run_command
from safetensors.torch import load_file, save_file

import disp_llm
from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.errors import InputError
from disp_llm.runs.files import write_checked_json
from disp_llm.runs.folder import Run
from disp_llm.runs.lock import created, locked


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(small_run[0], tmp_path / "run")


def refused(*command: object) -> str:
    """The line that a command is refused with."""
    done = must_refuse(*command)
    assert "Traceback" not in done.stderr
    return (done.stderr or done.stdout).splitlines()[-1]


def flip(path: Path) -> None:
    """Changes the lowest bit of the last weight."""
    tensors = load_file(path)
    name = max(tensors)
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(9.0))
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["keep-0.5/model.safetensors", "result.json", "corpus.txt"])
def test_a_page_replaces_pages_alone(run, name):
    path = run / name
    path.touch()
    before = path.read_bytes()
    assert "that disp-llm did not write" in refused("report", run, "--output", path)
    assert path.read_bytes() == before
    page = run / "report.html"
    must_run("report", run, "--output", page)
    page.write_text("<html>of somebody else</html>")
    assert "that disp-llm did not write" in refused("report", run)


def test_verify_of_a_run_without_its_record(run, tmp_path):
    flip(run / "keep-0.5" / "model.safetensors")
    (run / "result.json").unlink()
    assert f"{run / 'result.json'}: is missing" in refused("verify", run)
    shutil.rmtree(run / "keep-0.5")
    assert not disp_llm.verify(run)["ok"]
    assert "is no run, comparison or model folder" in refused("verify", tmp_path)


@pytest.mark.parametrize("lost", ["config.toml", "result.json"])
def test_verify_of_a_comparison_names_a_run_that_lost_a_file(
    lost, llama_folder, text_file, tmp_path
):
    must_run(
        "compare", llama_folder, "--methods", "magnitude", "--keep", 0.5, "--text", text_file,
        "--output-dir", tmp_path / "cmp", "--context", 32, "--windows", 2, "--rounds", 0,
    )  # fmt: skip
    assert disp_llm.verify(tmp_path / "cmp")["ok"]
    (tmp_path / "cmp" / "magnitude" / lost).unlink()
    assert lost in refused("verify", tmp_path / "cmp")


@pytest.mark.parametrize("how", ["emptied", "deleted"])
def test_nothing_is_pushed_without_sums(how, run):
    sums = run / "keep-0.5" / "SHA256SUMS"
    sums.write_text("") if how == "emptied" else sums.unlink()
    assert "SHA256SUMS: is missing or empty" in refused("push", run / "keep-0.5", "me/it")


@pytest.fixture
def inputs(llama_folder, text_file, tmp_path) -> dict[str, Path]:
    """A model and a text of one's own."""
    model = shutil.copytree(llama_folder, tmp_path / "m")
    return {"model": model, "text": Path(shutil.copy(text_file, tmp_path / "t.txt"))}


def prune_in(folder: Path, inputs: dict[str, Path], *flags: object) -> tuple[object, ...]:
    texts = ("--text", inputs["text"], "--output-dir", folder)
    return ("prune", inputs["model"], "--keep", 0.5, *texts, *SMALL, *flags)


def test_a_checkpoint_of_another_text_is_not_taken(inputs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    left = iter([False] * 3)
    with monkeypatch.context() as patch:
        patch.setattr("disp_llm.cli.signals.StopSignals.__call__", lambda _: next(left, True))
        assert run_command(*prune_in(run, inputs)).returncode == 130
    inputs["text"].write_text(inputs["text"].read_text() + "more")
    assert "--text: is not what" in refused(*prune_in(run, inputs, "--resume"))
    (run / "result.json").unlink()
    line = refused(*prune_in(run, inputs, "--resume"))
    assert "checkpoint: is of other settings, another model or other text" in line


def test_a_log_that_is_damaged_after_learning(run, llama_folder):
    figures = Run(run).result()
    write_checked_json(run / "result.json", figures | {"status": "running"})
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    line = refused("prune", llama_folder, "--output-dir", run, "--resume")
    assert f"{log}: is not the file that was written" in line


def test_a_refused_command_leaves_no_folder(text_file, tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    refused("prune", tmp_path / "nope", "--text", text_file, "--output-dir", deep)
    refused("convert", tmp_path / "nope", "--to", "folder", "--output-dir", deep)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_one_new_place(run, tmp_path):
    """The second is refused, and what a killed one left of the same is swept by the next."""
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with created(tmp_path / "new", "to") as temporary:
            temporary.write_text("first")
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    command = ("convert", run / "keep-0.5", "--to", "folder", "--output-dir", tmp_path / "new")
    assert "is in use by process" in refused(*command)
    go_on.set()
    thread.join()
    assert (tmp_path / "new").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "new"}


def test_a_run_in_use_is_named_by_the_word_of_the_command(run):
    with locked(run, "prune"):
        line = refused("export", run, "--keep", 0.6)
    assert line.startswith(f"disp-llm: RUN: {run} is in use by process")


def test_what_a_killed_copy_left_is_swept_by_the_next(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("disp_llm.runs.files.shutil.rmtree", lambda *given, **more: None)
        with pytest.raises(InputError), created(tmp_path / "new", "to"):
            raise InputError("killed", field="f", hint="h")
    (foreign := tmp_path / ".disp-llm-mine").mkdir()
    assert len(list(tmp_path.glob(".disp-llm-*"))) == 2
    convert(ConvertConfig(run / "keep-0.5", "folder", tmp_path / "new"))
    assert list(tmp_path.glob(".disp-llm-*")) == [foreign]


def test_a_deleted_model_is_named_as_it_was_given(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs["model"] = Path("m")
    must_run(*prune_in(Path("run"), inputs))
    shutil.rmtree("run/keep-0.5")
    shutil.rmtree("m")
    line = refused(*prune_in(Path("run"), inputs, "--resume"))
    assert "leave that setting out" not in line
    assert "m" in line


def test_other_commands_say_what_is_gone_and_what_helps(inputs, tmp_path):
    must_run(*prune_in(tmp_path / "run", inputs))
    size = tmp_path / "run" / "keep-0.5"
    moved = inputs["text"].rename(tmp_path / "moved.txt")
    gone = f"{inputs['text']}, which it was made of, is gone; put it back, or add --no-measure"
    assert refused("export", tmp_path / "run", "--keep", 0.6) == f"disp-llm: RUN: {gone}"
    must_run("export", tmp_path / "run", "--keep", 0.6, "--no-measure")
    moved.rename(inputs["text"])
    shutil.rmtree(inputs["model"])
    for flags in ((), ("--no-measure",)):
        line = refused("export", tmp_path / "run", "--keep", 0.7, *flags)
        assert line.endswith(f"RUN: {inputs['model']}, which it was made of, is gone; put it back")
    gone = f"--against: {inputs['model']}, which {size} was made from, is gone; name the original"
    assert gone in refused("generate", size, "a", "--against", "original")
    assert gone in refused("bench", size)


def test_damaged_settings_of_a_run_are_to_be_put_back(run, llama_folder):
    (run / "config.toml").write_text("= =")
    assert "put config.toml back" in refused("prune", llama_folder, "--output-dir", run, "--resume")


def test_a_command_that_is_asked_to_end_tidies_up(llama_folder, text_file, tmp_path):
    folder = tmp_path / "cmp"
    command = ("compare", llama_folder, "--text", text_file, "--output-dir", folder)
    child = fresh.start_command(*command)
    lock = folder / ".disp-llm.lock"
    while not (lock.exists() and lock.read_text()):  # until it is held
        assert child.alive()
    child.send_signal(signal.SIGTERM)
    done = child.wait()
    assert done.returncode in (130, 143)
    assert not folder.exists() or not (folder / ".disp-llm.lock").exists()


def test_figures_are_json(run):
    """`inputs` are read back by their own types."""
    figures = Run(run).figures
    assert figures is not None
    (stamps,) = (figures.inputs[name] for name in ("text",))
    assert json.loads((run / "result.json").read_text())["inputs"]["text"].keys() == stamps.keys()


@pytest.fixture
def with_padding(llama_folder, text_file, tmp_path) -> dict[str, Path]:
    """A model to whose tokenizer somebody has added tokens, and no rows; texts that have one."""
    model = shutil.copytree(llama_folder, tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<more {number}>" for number in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(model)
    (text := tmp_path / "t.txt").write_text(f"{text_file.read_text()[:500]}<more 0>" + "<pad>" * 9)
    with_last = text_file.read_text().replace("cube", tokenizer.convert_ids_to_tokens(rows))
    (tmp_path / "more.txt").write_text(with_last)
    row = json.dumps({"prompt": "a", "answer": tokenizer.convert_ids_to_tokens(rows)})
    (tmp_path / "more.jsonl").write_text("\n".join([row] * 20))
    return {"model": model, "known": text, "text": tmp_path / "more.txt"}


def test_a_token_without_a_row_is_named(with_padding, tmp_path):
    model, text, run = with_padding["model"], with_padding["text"], tmp_path / "run"
    examples = text.with_suffix(".jsonl")
    few = ("--context", 32, "--windows", 2)
    must_run("eval", model, "--text", with_padding["known"], *few)  # its tokens have rows
    said = r"'<more \d+>', the token \d+, and the embedding has \d+ rows; leave that token out"
    for flag, command in (
        ("--text", prune_in(run, with_padding)),
        ("--eval-text", (*prune_in(run, with_padding | {"text": with_padding["known"]}),
                         "--eval-text", text)),
        ("--examples", ("prune", model, "--keep", 0.5, "--examples", examples,
                        "--output-dir", run, *SMALL)),
        ("--text", ("eval", model, "--text", text, *few)),
        ("--examples", ("eval", model, "--examples", examples)),
        ("PROMPT", ("generate", model, text.read_text()[:200])),
    ):  # fmt: skip
        assert re.match(f"disp-llm: {flag}: .*{said}", refused(*command)), refused(*command)
        assert not run.exists()
