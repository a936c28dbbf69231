"""Everything that a run is made of x how it may have changed x whether the run had finished.

The same line with `--resume auto` again is refused, by the name of the setting, and changes
nothing; where only the time of a file is new it goes on, to the same bits.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, StopAfter, must_run, run_command
from foreign import Entry, changes, snapshot
from safetensors.torch import load_file, save_file

FEW = "--context 32 --windows 2 --dtype float32 --device cpu".split()
TRAINED = "--tokens 192 --length 32 --batch 1".split() + FEW
COMPARED = [
    *"--methods magnitude learned --keep 0.5 --rounds 0 --length 32 --steps 4 --batch 1".split(),
    *"--calibration-sequences 2 --calibration-length 32".split(),
    *FEW,
]
SUITE = 'title = "own"\ncontext = 32\nwindows = 2\n\n[texts.Own]\nfiles = ["suite.txt"]\n'

Change = Callable[[Path], None]


def rewritten(change: Callable[[bytes], bytes], same_time: bool = False) -> Change:
    """A change of content, a day later or at the same time."""

    def made(path: Path) -> None:
        before = path.stat().st_mtime_ns
        path.write_bytes(change(path.read_bytes()))
        time = before + (0 if same_time else 86_400 * 10**9)
        os.utime(path, ns=(time, time))

    return made


def moved(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))


def touched(path: Path) -> None:
    for file in [path, *path.rglob("*")]:
        os.utime(file, ns=(10**18, 10**18))


def weight(path: Path) -> None:
    """The next larger number, in the middle of a model."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(9.0))
    save_file(tensors, file, metadata={"format": "pt"})


def inside(name: str, *replaced: str) -> Change:
    """A change in a file of a model folder."""

    def made(path: Path) -> None:
        file = path / name
        content = file.read_text()
        assert replaced[0] in content
        file.write_text(content.replace(*replaced, 1))

    return made


def other_words(content: bytes) -> bytes:
    """Of the same length."""
    for old, new in ((b"square", b"sphere"), (b"2 plus", b"3 plus")):
        if old in content:
            return content.replace(old, new, 1)
    raise AssertionError("has neither")


TEXT: dict[str, Change] = {
    "other words": rewritten(other_words),
    "longer": rewritten(lambda content: content + content[:200]),
    "shorter": rewritten(lambda content: content[: content.rindex(b"\n", 0, -200) + 1]),
    "a byte at its end": rewritten(lambda content: content + b"\n\n"),
    "other words at the same time": rewritten(other_words, same_time=True),
    "touched": touched,
    "moved": moved,
}
EXAMPLES = {how: TEXT[how] for how in TEXT if how != "a byte at its end"}
MODEL: dict[str, Change] = {
    "a weight": weight,
    "its configuration": inside("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    "its tokenizer": inside(
        "tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true'
    ),
    "touched": touched,
    "moved": moved,
}
PRUNED: dict[str, Change] = {"a weight": weight, "touched": touched, "moved": moved}
SETTINGS: dict[str, Change] = {
    "another number": rewritten(lambda content: content.replace(b"2", b"3")),
    "one more": rewritten(lambda content: content + b"# a comment\n" + content[:0]),
    "touched": touched,
    "moved": moved,
}
HARMLESS = ("touched",)
"""After which the same line goes on."""


@dataclass(frozen=True)
class Job:
    """A command, and the setting of each of its inputs with what may become of that."""

    line: list[str]
    inputs: dict[str, tuple[str, dict[str, Change]]]
    result: str


JOBS = {
    "text": Job(
        [
            *"prune model --text text.txt --eval-text test.txt --keep 0.5".split(),
            *"--suite suite.toml --output-dir OUT".split(),
            *SMALL,
        ],
        {
            "model": ("model", MODEL),
            "text.txt": ("text", TEXT),
            "test.txt": ("eval_text", TEXT),
            "suite.toml": ("suite", SETTINGS),
            "suite.txt": ("suite", TEXT),
        },
        "keep-0.5/model.safetensors",
    ),
    "examples": Job(
        [
            *"prune model --examples learn.jsonl --eval-examples test.jsonl".split(),
            *"--keep 0.5 --output-dir OUT".split(),
            *SMALL,
        ],
        {
            "model": ("model", MODEL),
            "learn.jsonl": ("examples", EXAMPLES),
            "test.jsonl": ("eval_examples", EXAMPLES),
        },
        "keep-0.5/model.safetensors",
    ),
    "recover": Job(
        [
            *"recover run/keep-0.5 --teacher model --weights-from run/keep-0.8".split(),
            *"--text text.txt --eval-text test.txt --suite suite.toml --output-dir OUT".split(),
            *TRAINED,
        ],
        {
            "run/keep-0.5": ("model", PRUNED),
            "model": ("teacher", MODEL),
            "run/keep-0.8": ("weights_from", PRUNED),
            "text.txt": ("text", TEXT),
            "test.txt": ("eval_text", TEXT),
            "suite.txt": ("suite", TEXT),
        },
        "model/model.safetensors",
    ),
    "compare": Job(
        [
            *"compare model --text text.txt --eval-text test.txt --suite suite.toml".split(),
            *"--output-dir OUT".split(),
            *COMPARED,
        ],
        {
            "model": ("model", MODEL),
            "text.txt": ("text", TEXT),
            "test.txt": ("eval_text", TEXT),
            "suite.toml": ("suite", SETTINGS),
            "suite.txt": ("suite", TEXT),
        },
        "learned/keep-0.5/model.safetensors",
    ),
}

CASES = [
    (job, state, name, how)
    for job, asked in JOBS.items()
    for state in ("finished", "begun")
    for name, (_, ways) in asked.inputs.items()
    for how in ways
    # What goes on to the end takes seconds.
    if not (state == "begun" and how in HARMLESS and name not in ("model", "text.txt"))
]


def times(folder: Path) -> dict[str, tuple[Entry, int]]:
    """A snapshot, with the time of every file."""
    found = snapshot(folder)
    return {name: (entry, (folder / name).stat().st_mtime_ns) for name, entry in found.items()}


@dataclass(frozen=True)
class World:
    """Inputs and, beside them, what was made of them; all of it can be put back."""

    place: Path
    whole: Path
    """A copy of it that nothing changes."""

    @cached_property
    def before(self) -> dict[str, tuple[Entry, int]]:
        return times(self.whole)

    def restored(self) -> None:
        """Makes the place what it was, times included."""
        now, before = times(self.place), self.before
        for name in sorted(now.keys() - before.keys(), reverse=True):
            path = self.place / name
            path.rmdir() if path.is_dir() else path.unlink()
        for name in sorted(before):
            if now.get(name) != before[name]:
                path, whole = self.place / name, self.whole / name
                path.mkdir(exist_ok=True) if whole.is_dir() else shutil.copy2(whole, path)
                os.utime(path, ns=(10**18, before[name][1]))

    def run(self, job: str, state: str, *more: str) -> Any:
        """The line of a job for the run in one of its states, as it was given at first."""
        flags = [word.replace("OUT", f"{job} {state}") for word in JOBS[job].line]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.place)
            return run_command(*flags, *more)


@pytest.fixture(scope="session")
def world(llama_folder, text_file, tmp_path_factory) -> World:
    place, whole = (tmp_path_factory.mktemp("inputs") / name for name in ("place", "whole"))
    place.mkdir()
    made = World(place, whole)
    shutil.copytree(llama_folder, place / "model")
    text = text_file.read_text()
    for name, content in {
        "text.txt": text,
        "test.txt": text[4000:],
        "suite.txt": text[2000:],
        "suite.toml": SUITE,
    }.items():
        (place / name).write_text(content)
    for name in ("learn.jsonl", "test.jsonl"):
        rows = [{"prompt": f"{i} plus {i}?", "answer": f" {2 * i}"} for i in range(90)]
        (place / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run, few = place / "run", ["--text", place / "text.txt", "--dtype", "float32"]
    done = must_run(
        "prune", llama_folder, "--keep", 0.5, 0.8, *few, "--output-dir", run, *SMALL[:-4]
    )
    for job in JOBS:
        done = made.run(job, "finished")
        assert done.returncode == 0, done.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("disp_llm.cli.signals.StopSignals.__call__", StopAfter(3))
            done = made.run(job, "begun")
        assert done.returncode == 130, done.stderr
    shutil.copytree(place, whole)
    return made


@pytest.mark.parametrize(("job", "state", "name", "how"), CASES)
def test_what_has_changed_is_refused_by_its_name(world, job, state, name, how):
    world.restored()
    setting, ways = JOBS[job].inputs[name]
    ways[how](world.place / name)
    folder = world.place / f"{job} {state}"
    before = snapshot(folder)
    resume = [] if job == "compare" else ["--resume", "auto"]
    done = world.run(job, state, *resume, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    if how in HARMLESS:
        assert done.returncode == 0, done.stderr
        result = JOBS[job].result
        whole = (world.whole / f"{job} finished" / result).read_bytes()
        assert (folder / result).read_bytes() == whole
        return
    if how == "moved" and state == "finished" and done.returncode == 0:
        assert not changes(before, snapshot(folder))  # nothing of it is asked for
        return
    assert done.returncode == 2, f"silent: {done.stderr}"
    found = changes(before, snapshot(folder))
    assert state == "begun" or not found
    assert found in ([], ["result.json changed"])  # which counts the seconds of all attempts
    complaints = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
    assert len(complaints) == 1
    found = json.loads(done.stdout)
    said = f"{found['field']} {found['error']}"
    assert re.search(rf"(?<![\w/]){setting}(?![\w/])|/{re.escape(name)}\b| {name}\b", said), found


@pytest.mark.parametrize("name", ["model", "text.txt", "test.txt"])
@pytest.mark.parametrize("state", ["finished", "begun"])
def test_anyway_goes_on(world, state, name):
    world.restored()
    next(iter(JOBS["text"].inputs[name][1].values()))(world.place / name)
    assert world.run("text", state, "--resume", "auto", "--anyway").returncode == 0


@pytest.mark.parametrize("name", ["model", "text.txt", "test.txt"])
def test_no_advice_mixes_two_inputs(world, name):
    """Who deletes the figures, as a message may say, has not made the inputs what they were."""
    world.restored()
    next(iter(JOBS["text"].inputs[name][1].values()))(world.place / name)
    folder = world.place / "text begun"
    (folder / "result.json").unlink()
    done = world.run("text", "begun", "--resume", "auto", "--json")
    assert done.returncode == 2, done.stderr
    assert not (folder / "keep-0.5").exists()
