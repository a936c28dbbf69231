"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from disp_llm.config.errors import InputError
from disp_llm.runs.ownership import require_replaceable, temporary_prefix

CHECKSUM = "checksum"
"""Key in a JSON file for the hash of all the others when it was written."""


@contextlib.contextmanager
def atomic(path: Path, signature: bytes = b"") -> Iterator[Path]:
    """Yields a temporary path beside `path`. At the end, the file or folder there replaces `path`,
    once it is on the disk. On an error nothing stays behind.

    Args:
        signature: identifies a file that may be replaced (`require_replaceable`).
    """
    try:
        require_replaceable(path, signature)
        with folder_made(path.parent):
            temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(path), dir=path.parent))
            try:
                yield temporary / path.name
                _open_modes(temporary / path.name)
                _flush(temporary / path.name)
                require_replaceable(path, signature)
                if path.is_dir():  # a folder takes two steps, but is never half there
                    os.replace(path, temporary / f"{path.name}.before")
                os.replace(temporary / path.name, path)
                _flush_entry(path.parent)
            finally:
                before = temporary / f"{path.name}.before"
                if before.exists() and not os.path.lexists(path):  # interrupted between the two
                    os.replace(before, path)
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors raises its own for a full disk
        raise InputError(
            f"cannot write ({getattr(error, 'strerror', None) or error})",
            field=str(path),
            hint="make room, or name another place",
        ) from error


@contextlib.contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents; at the end, removes the new ones that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                path.rmdir()


def _open_modes(path: Path) -> None:
    """Gives files the mode that `open` would. safetensors makes them private to their owner, but
    another user often serves a model folder."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _flush(path: Path) -> None:
    """Waits until all is on the disk: a name must never appear there before its content."""
    for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _flush_entry(entry)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with an indent of two."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum that reveals later changes."""
    write_json(path, value | {CHECKSUM: _checksum(value)})


def read_checked_json(path: Path, hint: str, anyway: bool = False) -> dict[str, Any]:
    """Reads an object that `write_checked_json` wrote, without its checksum. Refuses one that was
    changed since, unless `anyway`."""
    value = read_json(path, hint)
    stated = value.pop(CHECKSUM, None)
    if not anyway and stated != _checksum(value):
        raise InputError("was changed after it was written", field=str(path), hint=hint)
    return value


def _checksum(value: dict[str, Any]) -> str:
    """Returns the hash of an object, however it is laid out."""
    said = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Returns the object in a JSON file; `hint` says what to do if it is damaged or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("is damaged", field=str(path), hint=hint) from error
    if not isinstance(value, dict):
        raise InputError("holds no object", field=str(path), hint=hint)
    return value
