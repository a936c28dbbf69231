"""What happens to files between two commands, and to a command between two files.

The rule is one: the same result with exit code 0, or one line with exit code 2; never a traceback,
and never another result. The table is commands by files by faults; hypothesis draws its entries.
"""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, run_command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from disp_llm.runs import files as files_module
from disp_llm.runs.ownership import MARK

FAST = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.generate,),  # a fault is as small as it can be
)

VOLATILE = {
    "run",
    "seconds",
    "choosing_s",
    "measuring_dense_s",
    "peak_memory_bytes",
    "command",
    "bytes",
    "date",
    "provenance",
}
"""What two equal commands may give differently: times, where a run began, the bytes of a page."""


def stable(value: Any, folder: Path) -> Any:
    """What a command printed, without its times and without where it ran."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in VOLATILE and not k.endswith("_ms")}
        return {key: stable(inner, folder) for key, inner in kept.items() if key != "files"}
    if isinstance(value, list):
        return [stable(inner, folder) for inner in value]
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


@dataclass
class World:
    """A folder as commands left it, and a command that reads it."""

    source: Path
    arguments: Callable[[Path], list[object]]
    """The command for a copy of the folder."""
    made: str = ""
    """A file that the command writes, which must come out as it was too."""
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Everything in the folder, by name."""
        found = (path for path in self.source.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.source).as_posix() for path in found)

    def outcome(self, folder: Path) -> dict[str, Any]:
        """What the command gives in a folder."""
        shutil.rmtree(folder.parent / "made", ignore_errors=True)
        done = run_command(*self.arguments(folder), "--json")
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 2:
            printed = json.loads(done.stdout)
            assert {"error", "field", "hint"} == set(printed) or printed["problems"], done.stderr
            assert len(done.stderr.splitlines()[-1]) < 600
            return {}
        assert done.returncode == 0, done.stderr
        content = (folder / self.made).read_bytes() if self.made else b""
        return {"printed": stable(json.loads(done.stdout), folder), "made": content}

    def require_rule(self, folder: Path) -> bool:
        """Whether the command was refused; anything but that or the same result fails."""
        if not self.expected:
            whole = folder.parent / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(self.source, whole)
            self.expected = self.outcome(whole)
            assert self.expected
        found = self.outcome(folder)
        assert found in ({}, self.expected)
        return not found


@pytest.fixture(scope="module")
def cut_run(llama_folder, text_file, tmp_path_factory) -> Path:
    """A run that was stopped after four of its six steps."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("disp_llm.cli.signals.StopSignals.__call__", StopAfter(4))
        done = run_command(
            "prune", llama_folder, "--keep", 0.5, "--text", text_file, "--output-dir", folder,
            *SMALL,
        )  # fmt: skip
    assert done.returncode == 130, done.stderr
    return folder


class StopAfter:
    """Asks to stop after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.fixture(scope="module")
def recovered(small_run, text_file, tmp_path_factory) -> Path:
    """A finished recovery."""
    folder = tmp_path_factory.mktemp("recovery") / "run"
    done = run_command(
        "recover", small_run[0] / "model", "--text", text_file, "--tokens", 256, "--length", 32,
        "--batch", 2, "--context", 32, "--windows", 2, "--dtype", "float32", "--device", "cpu",
        "--output-dir", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


COMPARED = """
    --methods magnitude random --keep 0.5 --rounds 0 --context 32 --windows 2 --length 32 --steps 2
    --calibration-sequences 2 --calibration-length 32 --dtype float32 --device cpu
""".split()


@pytest.fixture(scope="module")
def comparison(llama_folder, text_file, tmp_path_factory) -> Path:
    """A finished comparison of two quick methods."""
    folder = tmp_path_factory.mktemp("comparison") / "run"
    done = run_command(
        "compare", llama_folder, "--text", text_file, "--output-dir", folder, *COMPARED
    )
    assert done.returncode == 0, done.stderr
    return folder


def world_of(name: str, request: pytest.FixtureRequest) -> World:
    """The folder and the command of one row of the table."""
    own = request.getfixturevalue
    llama, text = own("llama_folder"), own("text_file")
    measured = ["--text", text, "--context", 32, "--windows", 2, "--dtype", "float32"]

    def resume(at: Path) -> list[object]:
        return ["prune", llama, "--output-dir", at, "--resume"]

    if name == "go on":
        return World(own("cut_run"), resume, "model/model.safetensors")
    if name == "recover":
        student = own("small_run")[0] / "model"
        return World(
            own("recovered"), lambda at: ["recover", student, "--output-dir", at, "--resume"]
        )
    if name == "compare":
        asked = ["compare", llama, "--text", text, *COMPARED]
        return World(own("comparison"), lambda at: [*asked, "--output-dir", at])
    run = own("small_run")[0]
    return {
        "resume": World(run, resume),
        "export": World(
            run, lambda at: ["export", at, "--keep", 0.7], "model-0.7/model.safetensors"
        ),
        "report": World(run, lambda at: ["report", at, "--output", at.parent / "made.html"]),
        "verify": World(run, lambda at: ["verify", at]),
        "eval": World(run / "model", lambda at: ["eval", at, *measured]),
        "save": World(run / "model", lambda at: ["save", at, "--to", at.parent / "made"]),
    }[name]


EXAMPLES = {"go on": 25, "export": 25, "eval": 30, "save": 25}
"""Entries that are drawn for a command; 30 where nothing is said."""


def damage(folder: Path, name: str, others: list[str], data: st.DataObject) -> str:
    """One fault in one file; its name."""
    path = folder / name
    content = path.read_bytes()
    place = data.draw(st.integers(0, max(len(content) - 1, 0)), label="place")
    fault = data.draw(
        st.sampled_from(["deleted", "emptied", "cut short", "flipped", "overwritten", "swapped"]),
        label="fault",
    )
    if fault == "deleted":
        path.unlink()
    elif fault == "emptied":
        path.write_bytes(b"")
    elif fault == "cut short":
        path.write_bytes(content[:place])
    elif fault == "flipped" and content:
        bit = 1 << data.draw(st.integers(0, 7), label="bit")
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
    elif fault == "overwritten":
        path.write_bytes(data.draw(st.binary(max_size=64), label="bytes"))
    elif fault == "swapped":
        other = data.draw(st.sampled_from(others), label="other")
        path.write_bytes((folder / other).read_bytes() if other != name else content)
    return fault


@pytest.mark.parametrize(
    "name",
    ["resume", "go on", "export", "report", "verify", "eval", "save", "recover", "compare"],
)
def test_a_damaged_file_is_refused_or_changes_nothing(name, request, tmp_path):
    world = world_of(name, request)

    @settings(FAST, max_examples=EXAMPLES.get(name, 30))
    @given(st.data())
    def of_one_file(data: st.DataObject) -> None:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world.source, folder)
        file = data.draw(st.sampled_from(world.files), label="file")
        damage(folder, file, world.files, data)
        world.require_rule(folder)

    of_one_file()


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


@pytest.fixture(scope="module")
def undisturbed(llama_folder, text_file, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert prune_at(folder, llama_folder, text_file).returncode == 0
    return results_of(folder)


def results_of(folder: Path) -> dict[str, bytes]:
    """What a run is made for."""
    names = ("masks.safetensors", "model/model.safetensors", "model/config.json", "metrics.jsonl")
    found = {name: (folder / name).read_bytes() for name in names[:-1]}
    steps = [json.loads(line) for line in (folder / names[-1]).read_text().splitlines()]
    losses = [{k: v for k, v in step.items() if k != "tokens_per_s"} for step in steps]
    return found | {names[-1]: json.dumps(losses).encode()}


@pytest.mark.parametrize("kind", ["full disk", "kill"])
def test_a_run_that_is_cut_off_at_any_write_goes_on_to_the_same_result(
    kind, undisturbed, llama_folder, text_file, tmp_path
):
    kills = kind == "kill"

    @settings(FAST, max_examples=8)
    @given(st.integers(0, 24))
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
        assert kills or "Traceback" not in done.stderr, done.stderr
        again = prune_at(folder, llama_folder, text_file, "--resume", "auto")
        assert again.returncode == 0, again.stderr
        assert results_of(folder) == undisturbed
        assert list(folder.rglob(".*")) == [folder / MARK]
        assert run_command("verify", folder).returncode == 0

    at()
