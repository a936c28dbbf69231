"""A command that is killed, or whose disk is full, at any write: the same command goes on, to the
same result."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, must_run, run_command
from foreign import left_over
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import disp_llm
from disp_llm.runs import files as files_module

FAST = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.generate,),  # a fault is as small as it can be
)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of an error sees it."""


class Fault:
    """Lets so many writes pass; then the disk is full for one, or nothing is written any more."""

    def __init__(self, after: int, error: BaseException, lasting: bool):
        self.after, self.error, self.lasting = after, error, lasting

    def __call__(self, path: Path) -> None:
        self.after -= 1
        if self.after == -1 or (self.lasting and self.after < 0):
            raise self.error


def prune_at(folder: Path, llama_folder: Path, text_file: Path, *flags: object) -> Any:
    return run_command(
        "prune", llama_folder, "--keep", 0.5, "--text", text_file, "--output-dir", folder,
        *flags, *SMALL,
    )  # fmt: skip


class Counted:
    """Counts writes, and lets all of them pass."""

    writes = 0

    def __call__(self, path: Path) -> None:
        self.writes += 1


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def undisturbed(counted, llama_folder, text_file, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "_flush", counted)
        assert prune_at(folder, llama_folder, text_file).returncode == 0
    return results_of(folder)


def results_of(folder: Path) -> dict[str, bytes]:
    """What a run is made for."""
    names = (
        "selection.safetensors",
        "keep-0.5/model.safetensors",
        "keep-0.5/config.json",
        "metrics.jsonl",
    )
    found = {name: (folder / name).read_bytes() for name in names[:-1]}
    steps = [json.loads(line) for line in (folder / names[-1]).read_text().splitlines()]
    losses = [{k: v for k, v in step.items() if k != "tokens_per_s"} for step in steps]
    return found | {names[-1]: json.dumps(losses).encode()}


@pytest.mark.parametrize("kind", ["full disk", "kill"])
def test_a_run_that_is_cut_off_at_any_write_goes_on_to_the_same_result(
    kind, undisturbed, counted, llama_folder, text_file, tmp_path
):
    kills = kind == "kill"

    @settings(FAST, max_examples=8)
    @given(st.integers(0, counted.writes - 1))
    def at(write: int) -> None:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        full = OSError(errno.ENOSPC, "No space left on device")
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(write, Killed() if kills else full, lasting=kills)
            patch.setattr(files_module, "_flush", fault)
            if kills:  # who is killed does not tidy up
                patch.setattr(files_module.shutil, "rmtree", lambda *given, **more: None)
            done = prune_at(folder, llama_folder, text_file)
        assert fault.after < 0, "nothing was cut off"
        assert kills or "Traceback" not in done.stderr, done.stderr
        again = prune_at(folder, llama_folder, text_file, "--resume", "auto")
        assert again.returncode == 0, again.stderr
        assert results_of(folder) == undisturbed
        assert not left_over(folder)
        must_run("verify", folder)

    at()


def test_an_export_that_is_killed_at_any_write_leaves_a_run_that_can_be_used(
    undisturbed, llama_folder, text_file, tmp_path
):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert prune_at(whole, llama_folder, text_file).returncode == 0
    export = ("export", folder, "--keep", 0.6, "--no-measure")
    made, write, killed = b"", 0, True
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        fault = Fault(write, Killed(), lasting=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files_module, "_flush", fault)
            run_command(*export)
        killed, write = fault.after < 0, write + 1
        found = disp_llm.verify(folder)["problems"]  # the size may lie there and not be recorded
        assert {problem["file"] for problem in found} <= {str(folder / "keep-0.6")}
        assert prune_at(folder, llama_folder, text_file, "--resume").returncode == 0
        must_run(*export)
        again = (folder / "selection.safetensors").read_bytes()
        made = made or again
        assert again == made != undisturbed["selection.safetensors"]
        must_run("verify", folder)
    assert write >= 6, "two writes of result.json and one of the selection among them"
