"""Whether a folder is what it was when it was written, from its files alone: nothing is loaded.

Files are held against their hashes: those in `result.json` of a run, and `SHA256SUMS` of every
exported folder.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disp_llm.commands.caller import Caller
from disp_llm.config.errors import InputError
from disp_llm.config.verify import VerifyConfig
from disp_llm.export.facts import FACTS
from disp_llm.runs.files import read_checked_json
from disp_llm.runs.folder import PUT_BACK, Run
from disp_llm.runs.ownership import MARK, damaged_mark, kind_of
from disp_llm.runs.settings import stored_settings
from disp_llm.runs.sums import (
    SUMS,
    extra_files,
    folder_problems,
    require_sums,
)

COMPARISON, ROWS_AGAIN = "compare.json", "delete it; every row is made again"
"""What `disp-llm compare` writes, and what to do where it is damaged."""


def verify(asked: VerifyConfig | str | Path | None = None) -> dict[str, Any]:
    """Checks a run, a comparison or an exported folder.

    Returns:
        `ok`, `kind`, how many `files` were held against their hashes, and `problems`, each with
        `file`, `what` and `hint`.
    """
    _, config = Caller.asking(VerifyConfig, asked, {})
    folder = config.folder
    kind, check = _kind(folder)
    files, problems = 0, []
    for found in check(folder):
        if isinstance(found, InputError):
            problems.append({"file": found.field, "what": found.what, "hint": found.hint})
        else:
            files += found
    return {"ok": not problems, "kind": kind, "files": files, "problems": problems}


Check = Callable[[Path], Iterator[InputError | int]]
"""A folder -> how many files were held against their hashes, and what is wrong."""


def _kind(folder: Path) -> tuple[str, Check]:
    """What a folder is, by its mark or, where that is lost, by what it holds; how it is checked.

    Raises:
        InputError: it is nothing of ours.
    """
    marked = kind_of(folder)
    if marked == "compare" or (not marked and (folder / COMPARISON).is_file()):
        return "comparison", _comparison
    if marked or any((folder / name).is_file() for name in ("config.toml", "result.json")):
        return "run", _run
    if any((folder / name).is_file() for name in ("config.json", FACTS)):
        return "exported folder", _exported
    raise InputError(
        f"{folder} is no run, comparison or model folder",
        field="folder",
        hint="name an `output_dir`, or a model folder inside it",
    )


def _collected(check: Callable[..., Iterator[InputError | int]], *inputs: Any) -> Iterator[Any]:
    """What a check finds; a file that stops it is a problem too."""
    try:
        yield from check(*inputs)
    except InputError as error:
        yield error


def _comparison(folder: Path) -> Iterator[InputError | int]:
    """`compare.json` and the run folders of its methods."""
    yield from _collected(_mark, folder)
    yield from _collected(_table, folder)
    found = (path.parent for name in (MARK, "config.toml") for path in folder.rglob(name))
    for run in sorted({*found} - {folder}):
        yield from _run(run)


def _mark(folder: Path) -> Iterator[int]:
    if not kind_of(folder):
        raise damaged_mark(folder)
    yield 1


def _table(folder: Path) -> Iterator[int]:
    read_checked_json(folder / COMPARISON, ROWS_AGAIN)
    yield 1


def _run(folder: Path) -> Iterator[InputError | int]:
    """The recorded files of a run, and its models."""
    yield from _collected(_mark, folder)
    yield from _collected(_recorded, Run(folder))


def _recorded(run: Run) -> Iterator[InputError | int]:
    result = run.result()
    if not result:
        yield InputError("is missing", field=str(run.result_file), hint=PUT_BACK)
    files, problems = result.get("files", {}), run.problems()
    yield len(files)
    yield from problems
    yield from _unrecorded(run, result)
    for folder in {(run.folder / name).parent for name in files if Path(name).name == SUMS}:
        yield from _collected(_listed, folder)
    stored_settings(run.folder)


def _unrecorded(run: Run, result: dict[str, Any]) -> Iterator[InputError]:
    """Models in the folder of a finished run that it has not written."""
    known = {Path(name).parts[0] for name in result.get("files", {})}
    found = (path.parent for path in run.folder.glob(f"*/{FACTS}"))
    for path in sorted(found) if result.get("status") == "done" else ():
        if path.name not in known:
            yield _foreign(path, "was not written by this run")


def _exported(folder: Path) -> Iterator[InputError | int]:
    """An exported folder that may lie anywhere."""
    yield from _collected(_sums_of, folder)


def _sums_of(folder: Path) -> Iterator[InputError | int]:
    yield from _listed(folder)
    yield from folder_problems(folder)


def _listed(folder: Path) -> Iterator[InputError | int]:
    """How many files the sums list, and those that lie beside them."""
    yield len(require_sums(folder))
    for name in extra_files(folder):
        yield _foreign(folder / name, "was not written with the others")


def _foreign(path: Path, what: str) -> InputError:
    return InputError(what, field=str(path), hint="move it elsewhere")
