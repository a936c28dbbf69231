"""The log of a run's steps: `metrics.jsonl`, one line per step."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic


class MetricsLog:
    """A context manager that closes the file. Keeps the lines of the first `step` steps; refuses
    them if they differ from the checkpoint's `digest`."""

    def __init__(self, path: Path, step: int, digest: str | None):
        self._path = path
        with self._writing():
            lines = path.read_bytes().splitlines(True)[:step] if path.exists() else []
        self._digest = hashlib.sha256(b"".join(lines))
        if digest not in (None, self._digest.hexdigest()):
            raise InputError(
                "is not the file that was written",
                field=str(path),
                hint="put it back, or delete the folder checkpoint to learn again",
            )
        with atomic(path) as temporary:
            temporary.write_bytes(b"".join(lines))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        with self._writing():
            self._file.close()

    def settle(self) -> str:
        """Waits until all lines so far are on the disk; returns their SHA-256."""
        with self._writing():
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def append(self, metrics: dict[str, Any]) -> None:
        """Writes the line of a step."""
        line = json.dumps(metrics) + "\n"
        self._digest.update(line.encode())
        with self._writing():
            self._file.write(line)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot read or write ({error.strerror})",
                field=str(self._path),
                hint="make room, then go on with `resume`",
            ) from error
