"""`prune` by several processes that hold one model together."""

import json
import signal
from pathlib import Path

import pytest
import together
import torch
from conftest import SMALL, must_refuse, must_run
from safetensors.torch import load_file

from disp_llm.runs.folder import Run


def prune(folder: Path, *arguments: object, count: int = 2, in_node: int = 0) -> dict:
    """What the first of several processes printed with `--json`."""
    command = ("prune", *SMALL, *arguments, "--output-dir", folder, "--json")
    if count == 1:
        done = must_run(*command)
        return json.loads(done.stdout)
    first, *others = together.run(together.COMMAND, *command, count=count, in_node=in_node)
    for other in others:
        assert not other.stdout.strip("{}\n")
        assert not said_by_us(other.stderr)  # the first says everything
    return json.loads(first.stdout)


def said_by_us(err: str) -> list[str]:
    """Messages and progress, apart from what libraries say when they are imported."""
    ours = ("disp-llm: ", "dense perplexity", "scoring", "learning masks", "keep ")
    return [line for line in err.splitlines() if line.startswith(ours)]


def assert_same_masks(one: Path, other: Path) -> None:
    """Equal masks; what they follow from is equal but for rounding."""
    first, second = (load_file(folder / "selection.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.startswith("layers."):
            assert torch.equal(tensor, second[name]), name
        else:
            torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.proof)])
def test_one_process_or_several_give_the_same_model(count, llama_folder, text_file, tmp_path):
    """Five calibration sequences, which two processes cannot share evenly; own evaluation and
    sizes; the windows of a step are the same."""
    common = (llama_folder, "--text", text_file, "--keep", 0.5, 0.8)
    several = (*common, "--shard", "full")
    sharded = prune(tmp_path / "several", *several, count=count)
    single = prune(tmp_path / "one", *common, "--batch", count, count=1)
    assert_same_masks(tmp_path / "one", tmp_path / "several")
    assert sharded["tokens_seen"] == single["tokens_seen"]
    for found, wanted in zip(sharded["models"], single["models"], strict=True):
        assert found["parameters"] == wanted["parameters"]
        assert found["measured"]["perplexity"] == pytest.approx(
            wanted["measured"]["perplexity"], rel=1e-4
        )
        assert found["perplexity_masked"] == pytest.approx(
            found["measured"]["perplexity"], rel=1e-5
        )
        assert found["logit_errors"]["max_logit_error"] <= 1e-5
        assert found["sample"].startswith(wanted["sample"])  # of which tests write fewer tokens
    Run(tmp_path / "several").require_whole()


def test_own_words_are_the_same(llama_folder, tmp_path):
    """The first process writes with the others' parts, and both learn from it."""
    prune(tmp_path / "two", llama_folder, "--shard", "full")
    prune(tmp_path / "one", llama_folder, "--batch", 2, count=1)
    assert_same_masks(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--method", "wanda", "--sites", "mlp_mid", "heads"),
            "--shard: the method wanda looks at all weights",
        ),
        (("--budget", "latency", "--fit", 0.8), "--shard: the method learned times models"),
    ],
)
def test_what_needs_whole_weights_is_refused(flags, said, llama_folder, text_file, tmp_path):
    command = ("prune", llama_folder, "--text", text_file, "--shard", "full", *flags)
    children = together.start(together.COMMAND, *command, "--output-dir", tmp_path / "run", *SMALL)
    first, second = together.ended(children)
    assert (first.returncode, second.returncode) in ((2, 2), (2, -signal.SIGKILL))
    assert said in first.stderr.splitlines()[-1]
    assert not said_by_us(second.stderr)
    assert not (tmp_path / "run").exists()


def test_one_process_has_nobody_to_share_with(llama_folder, text_file, tmp_path):
    done = must_refuse("prune", llama_folder, "--text", text_file, "--shard", "full", *SMALL)
    assert "--shard: full, and there is one process; start several by" in done.stderr


LEARNING = """
import os, signal, time
from disp_llm.runs.metrics import MetricsLog
append = MetricsLog.append
def {then}(log, figures):
    append(log, figures)
    if figures["step"] == 3:
        {what}
MetricsLog.append = {then}
"""
"""Lines that do something in the first process once it has logged a step."""

SOON = """
import datetime, disp_llm.models.devices
disp_llm.models.devices.PATIENCE = datetime.timedelta(seconds=3)
"""


@pytest.mark.parametrize("what", ["os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(600)"])
def test_a_process_that_is_lost_ends_the_others_in_one_line(
    what, llama_folder, text_file, tmp_path
):
    """Killed, or hung for longer than `PATIENCE`."""
    command = ("prune", llama_folder, "--text", text_file, "--shard", "full")
    lines = LEARNING.format(then="ending", what=what)
    before = (lines, SOON, "import disp_llm.cli.main; disp_llm.cli.main.PAUSE = 0")
    children = together.start(
        together.COMMAND, *command, "--output-dir", tmp_path / "run", *SMALL, before=before
    )
    done = children[1].wait()
    assert children[0].alive() == ("sleep" in what)
    children[0].send_signal(signal.SIGKILL)
    children[0].wait()
    assert done.returncode == 2
    (line,) = said_by_us(done.stderr)
    assert line == (
        "disp-llm: prune: another process has ended or hangs; start all again with "
        "--resume auto, which goes on from the last checkpoint"
    )
