"""Tells by a mark what is ours, before anything is locked, swept, replaced or written.

    FOLDER/.disp-llm         the mark of a folder: its kind, and its own number
    FOLDER/.disp-llm.lock    while a process works there
    .disp-llm-NUMBER-XXXX/   what is half written, in the folder of that number

A page of ours says so in its first bytes, a model folder by its `card.json`. What has no mark is
somebody else's: it is never deleted, renamed or replaced.
"""

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from disp_llm.config.errors import InputError

MARK = ".disp-llm"
"""Name of the mark, and prefix of all names that we put beside an output."""

LOCK = f"{MARK}.lock"

FACTS = "card.json"
"""File that identifies an exported folder, wherever it lies."""

PAGE = b'<meta name="generator" content="disp-llm">'
"""Signature among the first bytes of our pages."""

HEAD = 4096
"""Number of these first bytes."""


def kind_of(folder: Path) -> str:
    """Returns what a folder is by its mark, such as `prune`; empty if it has no mark of ours."""
    return _mark(folder)[0]


def _mark(folder: Path) -> tuple[str, str]:
    """Returns kind and number in a folder's mark; empty if it has none."""
    try:
        content = (folder / MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "", ""
    kind, number = (*content.split(), "", "", "")[1:3]
    return (kind, number) if content == _content(kind, number) else ("", "")


def _content(kind: str, number: str) -> str:
    """Returns the content of a mark, with a checksum that shows it is whole."""
    said = f"disp-llm {kind} {number}"
    return f"{said} {hashlib.sha256(said.encode()).hexdigest()[:8]}\n"


def mark(folder: Path, kind: str) -> None:
    """Marks a folder as ours."""
    (folder / MARK).write_text(_content(kind, secrets.token_hex(8)), encoding="utf-8")


def is_unused(folder: Path) -> bool:
    """Returns whether a folder is missing or holds only what killed processes of ours left."""
    if not os.path.lexists(folder):
        return True
    ours = {folder / MARK, folder / LOCK} if kind_of(folder) else {folder / LOCK}
    return folder.is_dir() and {*folder.iterdir()} <= {*ours, *_half_written(folder / MARK)}


def require_ours(folder: Path, kind: str) -> None:
    """Refuses a place that holds anything, unless it is our folder of this kind."""
    try:
        found, unused = kind_of(folder), is_unused(folder)
    except OSError as error:
        what = f"{folder} cannot be read ({error.strerror})"
        raise InputError(what, field="output_dir", hint="name another folder") from error
    if unused or found == kind:
        return
    lost = all((folder / name).is_file() for name in ("config.toml", "result.json"))
    if not found and (lost or os.path.lexists(folder / MARK)):
        raise damaged_mark(folder)
    what = f"is a folder of `disp-llm {found}`" if found else "exists and is not empty"
    raise InputError(f"{folder} {what}", field="output_dir", hint="name another folder")


def damaged_mark(folder: Path) -> InputError:
    """Returns the error about a folder of ours whose mark is damaged or missing."""
    hint = "put it back, or begin in a new `output_dir`"
    return InputError("is damaged or missing", field=str(folder / MARK), hint=hint)


def require_replaceable(path: Path, signature: bytes = b"") -> None:
    """Refuses to replace what is not ours. A file is ours by a signature in its first bytes or, if
    none is given, by its folder; a folder by its mark or card."""
    if os.path.lexists(path) and not _is_ours(path, signature):
        kind = "folder" if path.is_dir() else "file"
        raise InputError(
            f"is a {kind} that disp-llm did not write",
            field=str(path),
            hint="move it away, or name another place",
        )


def _is_ours(path: Path, signature: bytes) -> bool:
    if path.is_symlink() or (path.is_dir() and signature):
        return False
    if path.is_dir():
        return bool(kind_of(path)) or (path / FACTS).is_file()
    if signature:
        with path.open("rb") as file:
            return signature in file.read(HEAD)
    return bool(_owner(path)) or (path.parent / FACTS).is_file()


def _owner(path: Path) -> str:
    """Returns the number of our folder that holds a file, at most one level down; else empty."""
    above = (path.parent, path.parent.parent)
    if above[1].name.startswith(f"{MARK}-"):  # being written there
        return above[1].name.split("-")[2]
    return next(filter(None, (_mark(parent)[1] for parent in above)), "")


def temporary_prefix(path: Path) -> str:
    """Returns the name prefix of the temporary folder in which a file or folder is written."""
    own = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return f"{MARK}-{_owner(path) or own}-"


def sweep(path: Path) -> None:
    """Removes what killed processes left half written of an output or, given a folder's mark, of
    anything in that folder."""
    for left in _half_written(path):
        shutil.rmtree(left, ignore_errors=True)


def _half_written(path: Path) -> list[Path]:
    found = path.parent.glob(f"{temporary_prefix(path)}*")
    return [left for left in found if left.is_dir() and not left.is_symlink()]
