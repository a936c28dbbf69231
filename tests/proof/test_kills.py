"""Kills at random moments, two commands on one folder, disks that are full or cannot be written.

Real processes and real file systems, with the tiny model."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fresh
import pytest
from conftest import SMALL, must_refuse, must_run, run_command
from foreign import LOCK, left_over

KILLS = int(os.environ.get("DISP_LLM_KILLS", "6"))
"""Of each command. 25 take half an hour a command on a slow machine."""

pytestmark = pytest.mark.proof

COMPARED = """
    --methods magnitude random fisher --keep 0.5 --rounds 0 --context 32 --windows 2
    --calibration-sequences 2 --calibration-length 32 --dtype float32 --device cpu
""".split()


@pytest.fixture
def commands(small_run, llama_folder, text_file) -> dict[str, Callable[[Path], list[object]]]:
    """Commands that write, each of which goes on where it was killed."""
    recovering = "--tokens 512 --length 32 --batch 2 --windows 2 --context 32"
    return {
        "prune": lambda at: [
            "prune", llama_folder, "--recipe", "disp", "--keep", 0.5, 0.8, "--text", text_file,
            "--output-dir", at, "--resume", "auto", *SMALL,
        ],
        "export": lambda at: ["export", at, "--keep", 0.7, 0.6],
        "recover": lambda at: [
            "recover", small_run[0] / "keep-0.5", "--text", text_file, "--output-dir", at,
            "--resume", "auto", *recovering.split(), "--dtype", "float32", "--device", "cpu",
        ],
        "compare": lambda at: [
            "compare", llama_folder, "--text", text_file, "--output-dir", at, *COMPARED,
        ],
    }  # fmt: skip


def weights_of(folder: Path) -> dict[str, bytes]:
    """Every file of weights and masks, by name."""
    found = sorted(folder.rglob("*.safetensors"))
    kept = [path for path in found if path.parent.name != "checkpoint"]
    assert kept
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def begin(name: str, folder: Path, small_run: tuple[Path, dict]) -> None:
    """`export` needs a run to export from; all others begin with nothing."""
    if name == "export":
        shutil.copytree(small_run[0], folder)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["prune", "export", "recover", "compare"])
def test_commands_survive_kills_to_the_bit(name, commands, small_run, tmp_path):
    chance, killed = random.Random(name), 0
    began = time.monotonic()
    whole = tmp_path / "whole"
    begin(name, whole, small_run)
    done = fresh.start_command(*commands[name](whole)).wait()
    assert done.returncode == 0, done.stderr
    longest = time.monotonic() - began
    attempt = 0
    while killed < KILLS:
        attempt += 1
        folder = tmp_path / f"run-{attempt}"
        begin(name, folder, small_run)
        while True:  # until an attempt gets through
            child = fresh.start_command(*commands[name](folder))
            last = time.monotonic() + chance.uniform(0.3, 1.1) * longest
            while child.alive() and time.monotonic() < last:
                time.sleep(0.01)
            if child.alive():
                child.send_signal(signal.SIGKILL)
            code = child.wait().returncode
            if code == 0:
                break
            assert code == -signal.SIGKILL, child.wait().stderr
            killed += 1
        assert weights_of(folder) == weights_of(whole)
        assert not left_over(folder)
        must_run("verify", folder)
    print(f"{name}: {killed} kills, {attempt} runs")


@pytest.mark.timeout(1800)
def test_the_second_of_two_commands_is_refused(commands, llama_folder, tmp_path):
    for turn in range(KILLS):
        folder = tmp_path / f"run-{turn}"
        first = fresh.start_command(*commands["prune"](folder))
        while not (folder / LOCK).exists() or not (folder / LOCK).read_text():
            assert first.alive()
            time.sleep(0.01)
        second = must_refuse(*commands["prune"](folder), "--json")
        assert f"process {first.pid}" in json.loads(second.stdout)["error"]
        assert first.wait().returncode == 0, first.wait().stderr
        must_run("verify", folder)
        assert not left_over(folder)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the options that it is given."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip("file systems cannot be mounted here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def remount(place: Path, options: str) -> None:
    """Changes the options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.timeout(1800)
def test_a_full_disk_at_every_stage_is_one_line_and_the_run_goes_on(
    commands, small_run, small_disk
):
    refused = 0
    place = small_disk("size=40k")
    folder = place / "run"
    for kilobytes in range(40, 4000, 60):
        remount(place, f"size={kilobytes}k")
        done = run_command(*commands["prune"](folder))
        if done.returncode == 0:
            break
        assert done.returncode == 2, done.stderr
        assert "No space left" in done.stderr or "cannot write" in done.stderr, done.stderr
        refused += 1
    assert done.returncode == 0
    assert refused >= 5
    assert weights_of(folder) == weights_of(small_run[0])
    print(f"{refused} full disks")


def test_a_disk_that_cannot_be_written_is_one_line(commands, small_run, small_disk, text_file):
    place = small_disk("size=20m")
    folder = place / "run"
    shutil.copytree(small_run[0], folder)
    (folder / "report.html").unlink()
    remount(place, "ro")
    for command in (
        commands["prune"](folder),
        commands["prune"](place / "new"),
        commands["export"](folder),
        commands["recover"](place / "better"),
        commands["compare"](place / "table"),
        ["report", folder],
        ["convert", folder / "keep-0.5", "--to", "folder", "--output-dir", place / "copy"],
    ):
        done = must_refuse(*command)
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("disp-llm: ")
    must_run("verify", folder)
    measured = ["--text", text_file, "--context", 32, "--windows", 2]
    must_run("eval", folder / "keep-0.5", *measured)
