"""Checks, from its files alone, whether a folder is as it was written; loads no model.

Compares files with their hashes: those in `result.json` of a run, and `SHA256SUMS` of every
exported folder.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disp_llm.commands.api import called, takes
from disp_llm.config.commands import VerifyConfig
from disp_llm.config.errors import InputError
from disp_llm.runs.files import read_checked_json
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import FACTS, MARK, damaged_mark, kind_of
from disp_llm.runs.results import PUT_BACK, ROWS_AGAIN
from disp_llm.runs.settings import stored_settings
from disp_llm.runs.sums import SUMS, extra_files, folder_problems, require_sums

COMPARISON = "compare.json"
"""File that `disp-llm compare` writes."""

RUN_FILES = ("config.toml", "result.json", COMPARISON)
"""Files that identify a run whose mark is lost."""


@takes(VerifyConfig)
def verify(folder: VerifyConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Checks a run, a comparison with all of its runs, or an exported folder.

    Returns:
        `ok` and `problems`, each with `file`, `what` and `hint`.
    """
    problems = _problems(called(VerifyConfig, folder, options).config.folder)
    told = [{"file": one.field, "what": one.what, "hint": one.hint} for one in problems]
    return {"ok": not told, "problems": told}


def _problems(folder: Path) -> list[InputError]:
    if kind_of(folder) or _has_any(folder, *RUN_FILES):
        runs = {path.parent for name in (MARK, "config.toml") for path in folder.rglob(name)}
        return [one for run in sorted({folder, *runs}) for one in _of_run(run)]
    if _has_any(folder, "config.json", FACTS):
        return [*_found(_of_model, folder)]
    raise InputError(
        f"{folder} is no run, comparison or model folder",
        field="folder",
        hint="name an `output_dir`, or a model folder inside it",
    )


def _has_any(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _found(check: Callable[[Path], Iterator[InputError]], folder: Path) -> Iterator[InputError]:
    """Yields the problems that a check finds; an error that stops the check is a problem too."""
    try:
        yield from check(folder)
    except InputError as error:
        yield error


def _of_run(folder: Path) -> Iterator[InputError]:
    if not kind_of(folder):
        yield damaged_mark(folder)
    yield from _found(_settings, folder)
    yield from _found(_recorded, folder)


def _settings(folder: Path) -> Iterator[InputError]:
    """Checks a comparison's table, or a run's settings and that it has a `result.json`."""
    if kind_of(folder) == "compare" or _has_any(folder, COMPARISON):
        read_checked_json(folder / COMPARISON, ROWS_AGAIN)
        return
    stored_settings(folder)
    if not (folder / "result.json").exists():
        yield InputError("is missing", field=str(folder / "result.json"), hint=PUT_BACK)


def _recorded(folder: Path) -> Iterator[InputError]:
    """Yields recorded files that have changed, and files and models that the run did not write."""
    run = Run(folder)
    yield from run.problems()
    for model in sorted({(folder / n).parent for n in run.files if Path(n).name == SUMS}):
        yield from _found(_beside, model)
    if run.result().get("status") == "done":
        known = {Path(name).parts[0] for name in run.files}
        for path in sorted(found.parent for found in folder.glob(f"*/{FACTS}")):
            if path.name not in known:
                yield _foreign(path, "was not written by this run")


def _of_model(folder: Path) -> Iterator[InputError]:
    yield from _beside(folder)
    yield from folder_problems(folder)


def _beside(folder: Path) -> Iterator[InputError]:
    """Yields files that lie in a folder but are not in its sums."""
    require_sums(folder)
    for name in extra_files(folder):
        yield _foreign(folder / name, "was not written with the others")


def _foreign(path: Path, what: str) -> InputError:
    return InputError(what, field=str(path), hint="move it elsewhere")
