"""Lets one process at a time work in a folder of ours, or at a new output.

The system drops the lock of a process however it ends: a kill leaves a file but no lock.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic, folder_made
from disp_llm.runs.ownership import (
    LOCK,
    MARK,
    kind_of,
    mark,
    require_ours,
    sweep,
)


@contextlib.contextmanager
def locked(folder: Path, kind: str, field: str = "output_dir") -> Iterator[None]:
    """Keeps other processes out of our folder of this kind while the context lasts.

    Makes the folder if there is none, marks it, and removes what killed processes left half written
    in it. If nothing was put into the folder, leaves everything as it was. Of several processes
    that work together, the first holds the lock.

    Args:
        field: setting that names the folder.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    require_ours(folder, kind)
    with _held(folder, LOCK, field, bool(kind_of(folder))):
        if kind_of(folder) != kind:
            mark(folder, kind)
        for place in (folder, *filter(Path.is_dir, folder.iterdir())):
            if place == folder or not kind_of(place):  # other runs have locks of their own
                sweep(place / MARK)
        try:
            yield
        finally:
            if {*folder.iterdir()} == {folder / MARK, folder / LOCK}:
                (folder / MARK).unlink()


@contextlib.contextmanager
def created(path: Path, field: str) -> Iterator[Path]:
    """Yields a temporary path, whose content at the end becomes the new file or folder `path`. No
    other process makes `path` meanwhile."""
    _require_new(path, field)
    with _held(path.parent, f"{MARK}-{path.name}.lock", field):
        _require_new(path, field)
        sweep(path)
        with atomic(path) as temporary:
            yield temporary


LONGEST_NAME = 200
"""Most bytes of a name: file systems take 255, and outputs are first written under longer ones."""


def _require_new(path: Path, field: str) -> None:
    """Refuses a place that exists, or where nothing can be written."""
    if os.path.lexists(path):
        what = "is a folder" if path.is_dir() else "exists"
        raise InputError(f"{path} {what}", field=field, hint="give another name")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        what = f"a name of more than {LONGEST_NAME} bytes"
        raise InputError(what, field=field, hint="give a shorter one")
    above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not above.is_dir():
        raise InputError(f"{above} is a file", field=field, hint="name a place in a folder")


@contextlib.contextmanager
def _held(folder: Path, name: str, field: str, is_ours: bool = False) -> Iterator[None]:
    """Holds a lock file in a folder, which is made if there is none. At the end, removes the folder
    if it is empty and was made here, or by an earlier process of ours."""
    path, holder = folder / name, ""
    lock = FileLock(path, timeout=0)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_made(folder))
            stack.callback(_give_back, lock, path, is_ours)  # before it is held: a signal may come
            holder = _holder(path)
            lock.acquire()
            path.write_text(f"process {os.getpid()} ({' '.join(sys.argv[:2])})")
        except Timeout as error:
            raise InputError(
                f"{folder} is in use by {holder}",
                field=field,
                hint="wait for it, stop it, or name another folder",
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise InputError(
                f"{folder} cannot be written ({getattr(error, 'strerror', None) or error})",
                field=field,
                hint="name another folder",
            ) from error
        yield


def _give_back(lock: FileLock, path: Path, is_ours: bool) -> None:
    """Removes and releases a lock, if it is held, and our folder, if it is then empty."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            path.unlink()  # before the release: nobody waits for this file
            if is_ours:
                path.parent.rmdir()  # fails if it is not empty
        lock.release()


def _holder(path: Path) -> str:
    """Returns who holds the lock, as its file says."""
    try:
        return path.read_text() or "another process"
    except (OSError, ValueError):
        return "another process"
