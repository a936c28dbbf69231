"""No command changes what is not its own: every output of every command, pointed at trees of
somebody else, refused or not."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from conftest import SMALL, must_run, run_command
from foreign import LOCK, MARK, STRANGE_ID, TREES, changes, grown, snapshot

from disp_llm.cli.parsing import all_settings

FEW = "--context 32 --windows 2 --dtype float32 --device cpu".split()
TRAINED = ["--tokens", 64, "--length", 32, "--batch", 1, *FEW]
READ = ["--calibration-sequences", 2, "--calibration-length", 32, "--device", "cpu"]
COMPARED = [
    *("--methods", "magnitude", "--keep", 0.5, "--rounds", 0),
    *FEW,
]

OUTPUTS = {
    ("prune", "output_dir"): "folder",
    ("recover", "output_dir"): "folder",
    ("compare", "output_dir"): "folder",
    ("export", "run"): "folder",
    ("report", "run"): "folder",
    ("report", "output"): "page",
    ("convert", "output_dir"): "folder",
}
"""Every setting that names what a command writes, and what it is."""

INPUTS = {
    *("text", "eval_text", "examples", "eval_examples", "keep_tokens", "folder"),
}
"""Settings that name what commands read."""

DEFAULTS = {"prune": "run", "recover": "recovered", "compare": "comparison"}
"""Where commands write if nothing is named."""


def _paths(config: Any) -> Iterator[str]:
    """Settings that are paths."""
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kinds = [hints[field.name], *get_args(hints[field.name])]
        kinds += [inner for kind in kinds for inner in get_args(kind)]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _paths(hints[field.name])
        elif Path in kinds:
            yield field.name


def test_every_path_is_known_as_what_is_read_or_written():
    outputs = {name for _, name in OUTPUTS}
    found = {
        (command, name) for command, config in all_settings().items() for name in _paths(config)
    }
    assert {name for _, name in found} == INPUTS | outputs
    assert {pair for pair in found if pair[1] in outputs} == set(OUTPUTS)


@dataclasses.dataclass(frozen=True)
class Made:
    """What commands read here."""

    model: Path
    text: Path
    run: Path

    def command(self, command: str, output: Path | None, refused: str = "") -> list[Any]:
        """A line that would run, or one that is `refused` for another reason than its output."""
        model = "nope" if refused == "no model" else self.model
        student = "nope" if refused == "no model" else self.run / "keep-0.5"
        text = ["--text", "nope.txt" if refused == "no text" else self.text]
        keep = ["--keep", 0.5] if refused != "bad size" else ["--keep", 1.5]
        to = [] if output is None else [output]

        def named(flag: str) -> list[Any]:
            return [flag, *to] if to else []

        return {
            "prune": ["prune", model, *text, *keep, *named("--output-dir"), *SMALL],
            "recover": ["recover", student, *text, *named("--output-dir"), *TRAINED]
            + (["--batch", -1] if refused == "bad size" else []),
            "compare": ["compare", model, *text, *named("--output-dir"), *COMPARED]
            + (keep if refused == "bad size" else []),
            "export": ["export", *to, "--no-measure", *keep],
            "report": ["report", *to],
            "page": ["report", self.run, *named("--output")],
            "copy": ["convert", student, "--to", "folder", *named("--output-dir")],
            "int8": ["convert", student, "--to", "int8", *named("--output-dir")],
            "int4": ["convert", student, "--to", "int4", *text, *named("--output-dir")],
        }[command]


@pytest.fixture(scope="session")
def made(llama_folder, text_file, small_run) -> Made:
    return Made(llama_folder, text_file, small_run[0])


def require_rule(done: Any) -> None:
    """Exit code 0, or 2 with one line; no traceback."""
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
    assert done.returncode == 0 or len(complaints) == 1, done.stderr


def require_untouched(place: Path, before: dict, new: str = "") -> None:
    """Fails where anything in a place is not as it was.

    Args:
        new: what a command was asked to write there, which may be there now.
    """
    found = changes(before, snapshot(place))
    assert not [line for line in found if not (new and line.startswith(new) and "is new" in line)]


FOLDERS = ("prune", "recover", "compare", "export", "report", "copy", "int8", "int4")
REFUSED = {
    "prune": ("", "bad size", "no model", "no text"),
    "recover": ("", "bad size", "no model"),
    "compare": ("", "no model"),
}
"""Reasons to refuse a command besides its output; "" = there is none."""


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    ("command", "refused"), [(c, why) for c in FOLDERS for why in REFUSED.get(c, ("",))]
)
def test_a_folder_of_somebody_else_stays_as_it_is(tree, command, refused, made, tmp_path):
    place = grown(tree, tmp_path / "place" / "tree")
    before = snapshot(place.parent)
    done = run_command(*made.command(command, place, refused))
    require_untouched(place.parent, before)
    assert done.returncode == 2
    require_rule(done)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("command", DEFAULTS)
def test_so_does_one_that_bears_the_name_of_a_default(tree, command, made, tmp_path, monkeypatch):
    place = grown(tree, tmp_path / "place" / DEFAULTS[command])
    monkeypatch.chdir(place.parent)
    before = snapshot(place.parent)
    done = run_command(*made.command(command, None))
    require_untouched(place.parent, before)
    assert done.returncode == 2


MAKERS = ("prune", "recover", "compare", "copy", "int8", "int4", "page")
"""Commands that make what is not there."""


@pytest.mark.parametrize("command", MAKERS)
@pytest.mark.parametrize("where", ["new", "deep/er/new", "none/new", ".x.tmp/new", "link/new"])
def test_what_is_refused_makes_nothing(command, where, made, tmp_path):
    """Neither an output, nor the folders above it."""
    place = grown("everything", tmp_path / "place" / "tree")
    (tmp_path / "place" / "outside").mkdir()
    (place / "link").symlink_to(place.parent / "outside")
    before = snapshot(place.parent)
    suffix = ".html" if command == "page" else ""
    line = made.command(command, place / f"{where}{suffix}", "no model")
    if command == "page":
        line[1] = "nope"
    done = run_command(*line)
    require_untouched(place.parent, before)
    assert done.returncode == 2
    require_rule(done)


PLACES = ("new", "report.html.new", ".x.tmp/new", "keep-0.6/new/est")
MADE = [(c, where) for c in ("prune", "copy", "page") for where in PLACES]
MADE += [("recover", PLACES[1]), ("compare", PLACES[2]), ("int8", PLACES[3])]
"""A run, a model folder and a page at every place; what is made as one of these is, at one."""


@pytest.mark.parametrize(("command", "where"), MADE)
def test_what_is_made_changes_nothing_beside_it(command, where, made, tmp_path):
    place = grown("everything", tmp_path / "place" / "tree")
    before = snapshot(place.parent)
    must_run(*made.command(command, place / where))
    require_untouched(place.parent, before, f"tree/{where.removesuffix('/est')}")
    assert (place / where).exists()


def test_no_file_of_somebody_else_is_replaced(made, tmp_path):
    """Whatever it is called, and whatever leads to it."""
    place = grown("everything", tmp_path / "place" / "tree")
    TREES["links"](grown("plain", place / "linked"))
    for name in ("plot.png", "page.html", "empty.html"):
        (place / name).write_text("" if "empty" in name else "<html>\n")
    before, failed = snapshot(place.parent), []
    for name in before:
        path = place.parent / name
        dangling = path.is_symlink() and not path.exists()
        if path.is_file() or path.is_dir() or dangling:
            done = run_command(*made.command("page", path))
            found = changes(before, snapshot(place.parent))
            if done.returncode != 2 or found:
                failed.append(f"{name}: {done.returncode} {done.stderr[-200:]} {found}")
                shutil.rmtree(place.parent)
                TREES["links"](grown("plain", grown("everything", place) / "linked"))
                before = snapshot(place.parent)
    assert not failed


def test_no_file_of_a_run_is_replaced_by_a_page(made, tmp_path):
    """Over weights, text, JSON of a run; a page replaces a page alone."""
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    before, failed = snapshot(run), []
    for name in before:
        done = run_command("report", run, "--output", run / name)
        found = changes(before, snapshot(run))
        if name == "report.html":
            assert done.returncode == 0, done.stderr
            assert found in ([], ["report.html changed"])
            before = snapshot(run)
        elif done.returncode != 2 or found:
            failed.append(f"{name}: {done.returncode} {found}")
            shutil.rmtree(run)
            shutil.copytree(made.run, run)
            before = snapshot(run)
    assert not failed


@pytest.mark.parametrize("command", ["prune", "recover", "compare", "copy", "int8"])
@pytest.mark.parametrize("kind", ["run", "model"])
def test_what_is_ours_and_of_another_kind_stays_too(command, kind, made, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(made.run / ("keep-0.5" if kind == "model" else ""), place)
    before = snapshot(place)
    done = run_command(*made.command(command, place))
    require_untouched(place, before)
    assert done.returncode == 2
    require_rule(done)


INSIDE = ("links", "tmp", "lookalikes", "read only", "everything")
"""Trees that lie in a run: what may be taken for a lock or for what a run has begun, and all."""


def sprinkle(tree: str, run: Path, aside: Path) -> set[str]:
    """Puts what a tree has, and a run has not, into a run; the names."""
    grown(tree, aside)
    had = set(snapshot(run))
    added = set()
    for name in sorted(snapshot(aside)):
        source, target = aside / name, run / name
        if name in (LOCK, MARK) or name.split("/")[0] in had:
            continue
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
        else:
            shutil.copy2(source, target, follow_symlinks=False)
        added.add(name)
    return added


@pytest.mark.parametrize("tree", INSIDE)
def test_what_somebody_puts_into_a_run_stays(tree, made, tmp_path):
    """Also if it looks like a lock or a temporary folder; whatever the command says of it."""
    run, whole = tmp_path / "place" / "run", made.run
    shutil.copytree(whole, run)
    added = sprinkle(tree, run, tmp_path / "place" / "aside")
    before = {name: entry for name, entry in snapshot(run).items() if name in added}
    commands: list[Callable[[], list[Any]]] = [
        lambda: ["verify", run],
        lambda: ["report", run],
        lambda: ["export", run, "--keep", 0.6, "--no-measure"],
        lambda: ["prune", made.model, "--output-dir", run, "--resume"],
        lambda: ["prune", made.model, "--output-dir", run, "--resume", "auto"],
    ]
    for command in commands:
        done = run_command(*command())
        if command()[0] != "verify":  # which has a line for each file that the run has not written
            require_rule(done)
        assert "Traceback" not in done.stderr
        now = {name: entry for name, entry in snapshot(run).items() if name in added}
        assert not changes(before, now), command()


def test_only_temporary_folders_of_the_run_itself_are_swept(made, tmp_path):
    """Those of another run stay, also where they lie in this one."""
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    strange = run / f"{MARK}-{STRANGE_ID}-model.x"
    (strange / "model").mkdir(parents=True)
    (strange / "model" / "a").write_text("mine\n")
    before = snapshot(strange)
    must_run("prune", made.model, "--output-dir", run, "--resume")
    require_untouched(strange, before)


@pytest.mark.parametrize("command", ["int4", "copy"])
def test_a_folder_beside_the_output_is_not_what_was_begun(command, made, tmp_path):
    place = tmp_path / "place"
    for name in (".new.tmp", ".new.x.tmp", "new.before"):
        grown("everything", place / name)
    before = snapshot(place)
    done = run_command(*made.command(command, place / "new"))
    require_rule(done)
    require_untouched(place, before, "new")
    assert command == "int4" or done.returncode == 0
