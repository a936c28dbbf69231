"""A process that is killed outright under torchrun: all start again, go on, and end with the masks
of a run that nobody has disturbed, bit for bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import SMALL
from safetensors.torch import load_file
from small import settled

pytestmark = pytest.mark.proof


def launch(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = ("prune", *arguments, "--output-dir", folder, "--resume", "auto", *SMALL)
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--max-restarts", "3", "-m", "disp_llm", *settled([*command, "--steps", 60]),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip


def kill(launched: subprocess.Popen[str], rank: int) -> None:
    for child in psutil.Process(launched.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.kill()
            return
    raise AssertionError(f"no process {rank}")


def steps_of(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("shard", ["no", "full"])
def test_a_run_goes_on_after_kills(shard, llama_folder, text_file, tmp_path):
    arguments = (llama_folder, "--text", text_file, "--shard", shard)
    disturbed = launch(tmp_path / "disturbed", *arguments)
    for rank, step in ((1, 5), (0, 20)):
        while steps_of(tmp_path / "disturbed") < step:
            assert disturbed.poll() is None, disturbed.communicate()
            time.sleep(0.02)
        kill(disturbed, rank)
        time.sleep(2)  # the killed ones are seen to have ended
    _, err = disturbed.communicate(timeout=250)
    assert disturbed.returncode == 0, err
    # What a signal raises inside a callback of a weak reference, Python only prints.
    assert err.count("Traceback") == err.count("Exception ignored in"), err
    whole = launch(tmp_path / "whole", *arguments)
    whole.communicate(timeout=250)
    assert whole.returncode == 0
    first, second = ((tmp_path / name / "selection.safetensors") for name in ("disturbed", "whole"))
    assert first.read_bytes() == second.read_bytes()
    assert load_file(first)
