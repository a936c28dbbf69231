"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from disp_llm.config.errors import InputError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is there at the end takes the place of `path`.

    Works for files and folders. On an error nothing stays behind.

    Raises:
        InputError: the folder is not writable or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary / path.name
        _open_modes(temporary / path.name)
        if path.is_dir():  # a folder cannot be replaced in one step, but never be half there
            if not (temporary / path.name).is_dir():
                raise InputError("is a folder", field=str(path), hint="name a file")
            os.replace(path, temporary / f"{path.name}.before")
        os.replace(temporary / path.name, path)
    except (OSError, SafetensorError) as error:  # the latter is safetensors' word for a full disk
        raise InputError(
            f"cannot write ({getattr(error, 'strerror', None) or error})",
            field=str(path),
            hint="make room or choose another `output_dir`",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _open_modes(path: Path) -> None:
    """Gives files the mode that `open` would: safetensors makes them private to their owner, and a
    model folder is often served by another user."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with an indent of two."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """An object that was written here, or by hand.

    Raises:
        InputError: it cannot be read, or is something else; `hint` says what to do.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError("is damaged", field=str(path), hint=hint) from error
    if not isinstance(value, dict):
        raise InputError("holds no object", field=str(path), hint=hint)
    return value


def write_tensors(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file; tensors must be contiguous."""
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
