"""The run folder: everything that one run made, and where it came from.

    RUN/  config.toml  metrics.jsonl  scores.safetensors  checkpoint/
          masks.safetensors  model/  result.json

The first size of a run is `masks.safetensors` and `model/`; every other is `masks-0.6.safetensors`
and `model-0.6/`. A stage that finds its file does not run again.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic, read_json, write_json


@dataclass(frozen=True)
class Run:
    """Paths of one run folder."""

    folder: Path

    @property
    def config_file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def page_file(self) -> Path:
        return self.folder / "report.html"

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.safetensors"

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def logits_file(self) -> Path:
        """The masks file that carries the final logits: that of the run's first size."""
        return self.folder / "masks.safetensors"

    def masks_file(self, size: str, first: str) -> Path:
        return self.folder / f"masks{_suffix(size, first)}.safetensors"

    def model_folder(self, size: str, first: str) -> Path:
        return self.folder / f"model{_suffix(size, first)}"

    def result(self) -> dict[str, Any]:
        """What has been measured so far; empty before anything has.

        Raises:
            InputError: the file is damaged.
        """
        if not self.result_file.exists():
            return {}
        return read_json(self.result_file, "delete it; figures are measured again")

    def update(self, **values: Any) -> dict[str, Any]:
        """Adds values to `result.json`."""
        result = self.result() | values
        write_json(self.result_file, result)
        return result


@contextlib.contextmanager
def clock(run: Run, name: str, active: bool = True) -> Iterator[None]:
    """Adds the seconds that the context lasts to those of earlier attempts, under that name in
    `result.json`; what an attempt took that was killed outright is not known.

    Args:
        active: whether this process writes.
    """
    began = time.perf_counter()
    try:
        yield
    finally:
        if active and run.result():
            before = run.result().get(name, 0.0)
            run.update(**{name: round(before + time.perf_counter() - began, 1)})


def _suffix(size: str, first: str) -> str:
    return "" if size == first else f"-{size}"


class MetricsLog:
    """`metrics.jsonl`, a line a step; going on from a step drops the lines after it.

    A context manager, which closes the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, metrics: dict[str, Any]) -> None:
        """Writes the line of a step."""
        if self._file is None:
            lines = self._path.read_text().splitlines(True) if self._path.exists() else []
            before = metrics["step"] - 1
            with atomic(self._path) as temporary:
                temporary.write_text("".join(lines[:before]))
            self._file = self._path.open("a", buffering=1)
        try:
            self._file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write ({error.strerror})",
                field=str(self._path),
                hint="make room, then go on with `resume`",
            ) from error
