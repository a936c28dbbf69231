"""One process at a time in an output folder.

The system drops the lock of a process that ends, however it ends, so that a kill leaves a file but
no lock.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from disp_llm.config.errors import InputError
from disp_llm.runs.files import leftovers, sweep
from disp_llm.runs.folder import Run

LOCK = ".lock"
"""Name of the file in an output folder."""


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what killed processes have left."""
    return {*folder.iterdir()} <= {folder / LOCK, *leftovers(folder)}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the context lasts, no other process writes to an output folder through this function.

    Makes the folder if there is none, removes what killed processes have left half written in it,
    and removes it at the end if nothing was put into it. Of several processes that work together
    the first holds the folder.

    Raises:
        InputError: another process holds the folder, or it cannot be written.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    path, holder = folder / LOCK, ""
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = _holder(path)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by {holder}",
            field="output_dir",
            hint="wait for it, stop it, or name another folder",
        ) from error
    except (OSError, ValueError) as error:  # the latter is Python's word for a null character
        raise InputError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or error})",
            field="output_dir",
            hint="name another folder",
        ) from error
    try:
        path.write_text(json.dumps({"process": os.getpid(), "command": sys.argv[:2]}))
        for place in (folder, Run(folder).checkpoint_folder):
            sweep(place)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for nothing cannot come in between
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # succeeds where nothing was put into it


def _holder(path: Path) -> str:
    """Who says in the file that it holds the folder."""
    try:
        held = json.loads(path.read_text())
        return f"process {held['process']} ({' '.join(held['command'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
