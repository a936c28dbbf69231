"""`recover` by several processes that hold student and teacher together."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import together
import torch
from conftest import BEGUN, must_refuse, must_run, one_process, tiny_model
from safetensors.torch import load_file

import disp_llm
from disp_llm.commands.api import Inputs
from disp_llm.commands.planning import refuse_impossible
from disp_llm.commands.session import as_begun
from disp_llm.config.errors import InputError
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.in_memory import read_input_examples
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job, Process
from disp_llm.training.checkpoints import checkpoints

FEW = """
    --length 32 --context 32 --windows 8 --dtype float32 --device cpu --tokens 1536
    --learning-rate 0.003
""".split()
"""12 steps of four windows, the gradient clipped and half of the loss the teacher's."""


def recover(folder: Path, *arguments: object, count: int = 1, in_node: int = 0) -> dict:
    """What the first of some processes printed with `--json`."""
    command = ("recover", *arguments, "--output-dir", folder, "--json")
    if count == 1:
        done = must_run(*command)
        return json.loads(done.stdout)
    first, *others = together.run(together.COMMAND, *command, count=count)
    assert not any(other.stdout.strip("{}\n") for other in others)
    return json.loads(first.stdout)


def losses(folder: Path) -> list[float]:
    """Those of all steps, in order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def assert_same_model(one: Path, other: Path) -> None:
    """Equal but for rounding; masks are the same."""
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)
    found, wanted = (Run(folder).result() for folder in (one, other))
    for key in ("before", "model"):
        assert found[key]["measured"]["perplexity"] == pytest.approx(
            wanted[key]["measured"]["perplexity"], rel=1e-4
        )
    assert found["tokens_seen"] == wanted["tokens_seen"] == 1536
    Run(one).require_whole()


@pytest.fixture(scope="module")
def alone(small_run, text_file, tmp_path_factory) -> Path:
    """What one process makes, of four windows a step."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    recover(folder, small_run[0] / "keep-0.5", "--text", text_file, *FEW, "--batch", 4)
    return folder


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.proof)])
def test_one_process_or_several_train_the_same(count, alone, small_run, text_file, tmp_path):
    folder, student = tmp_path / "several", small_run[0] / "keep-0.5"
    flags = ("--text", text_file, *FEW, "--shard", "full", "--batch", 4 // count)
    recover(folder, student, *flags, count=count)
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    assert_same_model(folder, alone)


SAVING = "import disp_llm.training.loop; disp_llm.training.loop.CHECKPOINT_EVERY = 1\n"
"""Saves weights at every fourth step; all processes have to."""

STOPPING = """
import os, signal
from disp_llm.runs.metrics import MetricsLog
append = MetricsLog.append
def stopping(log, figures):
    append(log, figures)
    if figures["step"] == 5:
        os.kill(os.getpid(), signal.{signal})
MetricsLog.append = stopping
import disp_llm.cli.main; disp_llm.cli.main.PAUSE = 0
"""
"""Lines by which the first process stops, or is killed, at its fifth step."""


@pytest.mark.parametrize(
    ("before", "after", "sent", "left"), [(2, 1, "SIGTERM", 6), (1, 2, "SIGKILL", 4)]
)
def test_a_run_goes_on_with_another_number_of_processes(
    before, after, sent, left, alone, small_run, text_file, tmp_path
):
    """Two that were asked to stop, which then are one; one that was killed, and is then two."""
    folder = tmp_path / "run"
    command = ("recover", small_run[0] / "keep-0.5", "--text", text_file, *FEW)
    flags = ("--shard", "full") if before > 1 else ()
    command = (*command, "--batch", 4 // before, *flags, "--output-dir", folder)
    lines = (SAVING + STOPPING.format(signal=sent), SAVING)[:before]
    children = together.start(together.COMMAND, *command, count=before, before=lines)
    done = together.ended(children)
    assert done[0].returncode == (130 if sent == "SIGTERM" else -signal.SIGKILL), done[0].stderr
    newest = checkpoints(folder / "checkpoint")[-1]
    assert newest.name == f"step-{left:07d}.safetensors"
    recover(
        folder, "--resume", *(("--shard", "full") if after > 1 else ("--shard", "no")), count=after
    )
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    assert_same_model(folder, alone)


@pytest.mark.parametrize(("count", "batch"), [(1, 12), (3, 4), (6, 2), (2, 6)])
def test_a_step_reads_what_it_read_with_another_number_of_processes(
    count, batch, tmp_path, monkeypatch
):
    """Begun by two, of six windows each."""
    monkeypatch.setattr(Process, "count", count)
    assert as_begun(job_of(tmp_path)).config.training.batch == batch


def test_windows_that_cannot_be_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(Process, "count", 5)
    with pytest.raises(InputError) as refused:
        as_begun(job_of(tmp_path))
    assert refused.value.field == "resume"
    assert "12 windows a step, which 5 cannot share" in refused.value.what


def job_of(folder: Path) -> Job[RecoverConfig]:
    """A job in a run that two processes have begun."""
    run = Run(folder / "run")
    run.update(**BEGUN, processes=2)
    config = RecoverConfig("tiny", training=TrainingConfig(batch=6))
    return Job(config, run, one_process())


def test_one_process_has_nobody_to_share_with(small_run, text_file, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run", "--shard", "full")
    done = must_refuse("recover", small_run[0] / "keep-0.5", *FEW, *flags)
    assert "--shard: full, and there is one process; start several by" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["model", "teacher"])
def test_a_model_in_memory_stays_whole(field, llama_folder, text_file, tokenizer, tmp_path):
    model = tiny_model("llama")
    student, teacher = (model, llama_folder) if field == "model" else (llama_folder, model)
    with pytest.raises(InputError) as refused:
        disp_llm.recover(
            student, tokenizer, teacher=teacher, text=text_file, shard="full", device="cpu"
        )
    assert refused.value.field == field
    assert "is in memory, as it is" in refused.value.what


def test_own_losses_beside_text_need_a_whole_model(tmp_path, monkeypatch):
    monkeypatch.setattr(Process, "count", 2)
    example = disp_llm.TaskExample((1, 2), lambda states: states.sum(), 1)
    given = read_input_examples([example], "auto")
    job = job_of(tmp_path)
    training = dataclasses.replace(job.config.training, shard="full")
    config = dataclasses.replace(job.config, training=training)
    text = dataclasses.replace(config.text, text=(Path("a.txt"),))
    job = dataclasses.replace(job, config=dataclasses.replace(config, text=text))
    inputs = Inputs(texts={"examples": given})
    with pytest.raises(InputError, match="shard: examples with a loss of their own") as refused:
        refuse_impossible(job, inputs)
    assert "a `shard` of no" in str(refused.value.hint)
