"""Every file of what commands have written x what can become of it x every command that reads it.

The rule is one: the right result, or exit code 2 and one line that names the file; never a
traceback, and never silence. `verify` names every damage.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, must_run, run_command
from damage import STRAY, damaged_values, ways
from damaged_world import World

import disp_llm
from disp_llm.runs.files import CHECKSUM, write_checked_json
from disp_llm.runs.sums import SUMS

FEW = "--context 32 --windows 2 --dtype float32 --device cpu".split()
TRAINED = ["--tokens", 64, "--length", 32, "--batch", 1, *FEW]
COMPARED = [
    *"--methods magnitude --keep 0.5 --rounds 0 --length 32 --steps 2".split(),
    *"--calibration-sequences 2 --calibration-length 32".split(),
    *FEW,
]


@pytest.fixture(scope="session")
def whole(llama_folder, text_file, tmp_path_factory) -> dict[str, Path]:
    """A run of one size, a recovery of its model, and a comparison."""
    root = tmp_path_factory.mktemp("whole")
    text = ["--text", text_file]
    lines = [
        ["prune", llama_folder, "--keep", 0.5, *text, "--output-dir", root / "run", *SMALL],
        ["recover", root / "run" / "keep-0.5", *text, "--output-dir", root / "recovered", *TRAINED],
        ["compare", llama_folder, *text, "--output-dir", root / "comparison", *COMPARED],
    ]
    for line in lines:
        must_run(*line)
    models = {"model": root / "run" / "keep-0.5", "recovered model": root / "recovered" / "model"}
    return {name: root / name for name in ("run", "recovered", "comparison")} | models


@pytest.fixture
def world(request, whole, llama_folder, text_file, tmp_path) -> World:
    """One of them, by its name."""
    made, text = tmp_path / "made", ["--text", text_file]
    commands: dict[str, dict[str, Callable[[Path], list[Any]]]] = {
        "run": {
            "report": lambda at: ["report", at, "--output", made / "page.html"],
            "resume": lambda at: ["prune", llama_folder, "--output-dir", at, "--resume"],
            "export": lambda at: ["export", at, "--keep", 0.7, "--no-measure"],
        },
        "recovered": {
            "resume": lambda at: [
                *("recover", whole["model"], *text, "--output-dir", at, "--resume", *TRAINED),
            ]
        },
        "comparison": {
            "compare": lambda at: ["compare", llama_folder, *text, "--output-dir", at, *COMPARED],
        },
    }
    of_model: dict[str, Callable[[Path], list[Any]]] = {
        "eval": lambda at: ["eval", at, *text, *FEW],
        "copy": lambda at: ["convert", at, "--to", "folder", "--output-dir", made],
        "int8": lambda at: ["convert", at, "--to", "int8", "--output-dir", made],
        "recover": lambda at: [
            *("recover", at, *text, "--teacher", llama_folder, "--output-dir", made, *TRAINED),
        ],
    }
    kind = request.param
    results = {
        "run": ("selection.safetensors", "keep-0.5/model.safetensors"),
        "recovered": ("model/model.safetensors",),
        "comparison": ("compare.json",),
    }
    return World(whole[kind], tmp_path, commands.get(kind, of_model), made=results.get(kind, ()))


KINDS = ("run", "recovered", "comparison", "model", "recovered model")
MODELS = ("model", "recovered model")
READERS = [
    *(("run", "report", 3), ("run", "resume", 5), ("run", "export", 17)),
    *(("recovered", "resume", 5), ("comparison", "compare", 13)),
    *((kind, "eval", 3 + 2 * i) for i, kind in enumerate(MODELS)),
    *((kind, "copy", 1 + 2 * i) for i, kind in enumerate(MODELS)),
    *((kind, "int8", 5 + 4 * i) for i, kind in enumerate(MODELS)),
    *((kind, "recover", 11 + 2 * i) for i, kind in enumerate(MODELS)),
]
"""What is read by what, and one of how many cases is tried, so that it takes seconds."""


@pytest.mark.parametrize("world", KINDS, indirect=True)
def test_verify_names_every_damage(world):
    cases = list(world.cases(every=3 if world.whole.name == "comparison" else 1))
    assert len(cases) > 50
    wrong = [world.unnamed(path, how, ways(path)[how]) for path, how in cases]
    assert not list(filter(None, wrong))


@pytest.mark.parametrize(
    ("world", "command", "every"), READERS, indirect=["world"], ids=lambda given: str(given)
)
def test_every_damage_is_refused_or_changes_nothing(world, command, every):
    cases = [
        (path, how)
        for path, how in world.cases(every)
        if command != "report" or path.parent == world.folder  # a page shows no weights
    ]
    assert len(cases) > 6
    wrong = [world.wrong(command, path, how, ways(path)[how]) for path, how in cases]
    assert not list(filter(None, wrong))


def put(content: bytes) -> Callable[[Path], None]:
    """Writes a file where there is none."""

    def change(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return change


@pytest.mark.parametrize("world", MODELS, indirect=True)
@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_is_named_and_goes_nowhere(world, name):
    path = world.folder / name
    assert not world.unnamed(path, "put there", put(STRAY[name]))
    for command in ("eval", "copy", "int8"):
        assert not world.wrong(command, path, "put there", put(STRAY[name]))
    world.fresh()
    put(STRAY[name])(path)
    done = run_command(*world.commands["copy"](world.folder))
    assert done.returncode == 2 or name.split("/")[0] in done.stderr


@pytest.mark.parametrize("world", ["run"], indirect=True)
@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_in_a_model_of_a_run_is_named(world, name):
    assert not world.unnamed(world.folder / "keep-0.5" / name, "put there", put(STRAY[name]))


def shortened(path: Path) -> None:
    """Without the line of the weights."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "model.safetensors" not in line))


MANIFESTS: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "shortened": shortened,
    "a blank line": lambda path: path.write_text("\n"),
}


@pytest.mark.parametrize("world", MODELS, indirect=True)
@pytest.mark.parametrize("how", MANIFESTS)
@pytest.mark.parametrize("flipped", [False, True])
def test_nothing_is_whole_by_a_manifest_that_does_not_tell(world, how, flipped):
    """Neither is it laundered: what is copied or made of it would have sums of its own."""
    weights = world.folder / "model.safetensors"

    def change(path: Path) -> None:
        MANIFESTS[how](path)
        if flipped:
            ways(weights)["flipped"](weights)

    for command in ("copy", "int8"):
        world.fresh()
        change(world.folder / SUMS)
        found, said = world.read(command)
        assert found is None, f"{command}: {found}"
        assert SUMS in said
        assert not (world.place / "made").exists()
    assert not world.unnamed(world.folder / SUMS, how, change)
    world.fresh()
    change(world.folder / SUMS)
    found, said = world.read("eval")
    assert found is None or (isinstance(found, dict) and SUMS in said), said


def restated(path: Path, value: dict[str, Any], checksum: bool) -> None:
    """Writes an object, with a checksum of its own or with the one that was there."""
    if checksum:
        write_checked_json(path, {key: held for key, held in value.items() if key != CHECKSUM})
    else:
        path.write_text(json.dumps(value))


VALUES = [("run", "result.json", 47), ("recovered", "result.json", 31)]
VALUES += [("comparison", "compare.json", 47), ("model", "card.json", 23)]


@pytest.mark.parametrize(
    ("world", "name", "every"), VALUES, indirect=["world"], ids=lambda given: str(given)
)
@pytest.mark.parametrize("checksum", [False, True])
def test_every_value_of_every_type(world, name, every, checksum):
    """Without a checksum that fits, every change is named; with one, whatever is wrong is."""
    world.fresh()
    path, wrong = world.folder / name, []
    value = json.loads(path.read_text())
    damaged = list(damaged_values(value))[::every]
    assert len(damaged) > 10
    readers = {"run": "report", "model": "eval", "comparison": "compare"}
    command = readers.get(world.whole.name, "resume")
    for how, changed in damaged:

        def change(path: Path, changed: Any = changed) -> None:
            restated(path, changed, checksum)

        if not checksum or name == "card.json":
            wrong.append(world.unnamed(path, how, change))
        else:
            world.fresh()
            change(path)
            for line in (["verify", world.folder], world.commands[command](world.folder)):
                done = run_command(*line)
                if done.returncode not in (0, 2) or "Traceback" in done.stderr:
                    wrong.append(f"{line[0]} with {how}: {done.stderr[-300:]}")
    assert not list(filter(None, wrong))


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a moment of our choice."""


@pytest.fixture(scope="session")
def learned(llama_folder, text_file, tmp_path_factory) -> Path:
    """A run that was stopped when it had learned and had exported nothing."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    stages: list[str] = []

    def progress(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
        stages.append(stage)
        if any("learning" in before for before in stages) and "learning" not in stage:
            raise Stopped

    flags = {
        flag[2:].replace("-", "_"): value
        for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True)
    }
    values = {key: json.loads(v) if v[0].isdigit() else v for key, v in flags.items()}
    with pytest.raises(Stopped):
        disp_llm.prune(
            str(llama_folder), text=text_file, keep=0.5, output_dir=folder, progress=progress,
            **values,
        )  # fmt: skip
    assert not (folder / "keep-0.5").exists()
    return folder


def test_a_log_that_is_damaged_before_the_end_is_not_adopted(learned, llama_folder, tmp_path):
    """Nor is anything else: the result is that of an undisturbed run, or a line names the file."""
    line: Callable[[Path], list[Any]] = lambda at: [  # noqa: E731
        *("prune", llama_folder, "--output-dir", at, "--resume"),
    ]
    results = ("selection.safetensors", "keep-0.5/model.safetensors", "metrics.jsonl")
    world = World(learned, tmp_path, {"resume": line}, results)
    cases = [*world.cases(17), *(case for case in world.cases() if case[0].suffix == ".jsonl")]
    assert len(cases) > 10
    wrong = [world.wrong("resume", path, how, ways(path)[how]) for path, how in cases]
    assert not list(filter(None, wrong))
