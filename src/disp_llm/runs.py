"""The run folder: everything that one run made, and where it came from.

    RUN/  config.toml  metrics.jsonl  scores.safetensors  checkpoint/
          masks.safetensors  model/  result.json

The first size of a run is `masks.safetensors` and `model/`; every other is `masks-0.6.safetensors`
and `model-0.6/`. A stage that finds its file does not run again.
"""

import contextlib
import json
import os
import platform
import resource
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, TypeVar

import tomli_w
import torch

from disp_llm.commands import RecoverCommand
from disp_llm.config import InputError, PruneConfig, apply_recipe, resolved
from disp_llm.files import atomic, read_json, write_json

Stored = TypeVar("Stored", bound=PruneConfig | RecoverCommand)

LIBRARIES = ("disp-llm", "torch", "transformers", "accelerate", "safetensors", "tokenizers")

Report = Callable[[str, int, int, dict[str, Any]], None]
"""(stage, done, total, figures), called as work goes on."""

FREE_TO_CHANGE = ("resume", "json", "output_dir")
"""Settings that a resumed run may have otherwise than its first attempt."""


def silent(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
    """A report that nobody sees."""


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

    def logits_file(self) -> Path:
        """The masks file that carries the final logits: that of the run's first keep."""
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


def stored_config(folder: Path, kind: type[Stored] = PruneConfig) -> Stored:
    """The configuration of an earlier attempt at a command.

    Raises:
        InputError: the folder is not a run, or its configuration is damaged.
    """
    path = folder / "config.toml"
    positional = fields(kind)[0].name
    try:
        tables = tomllib.loads(path.read_text())
        return apply_recipe(kind(**{positional: tables.pop(positional)}), tables)
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        command = "prune" if kind is PruneConfig else "recover"
        raise InputError(
            "is not a run folder" if isinstance(error, FileNotFoundError) else f"damaged ({error})",
            flag=str(folder),
            mend=f"name the --output-dir of an earlier `disp-llm {command}`",
        ) from error


def require_available(config: PruneConfig | RecoverCommand) -> None:
    """Checks, before anything is loaded, that the run folder can be used; creates nothing.

    Raises:
        InputError: it holds a run and --resume is not given (or the reverse), the settings differ
            from those of the run that is to go on, or it cannot be written.
    """
    run, flag = Run(config.output_dir), "--output-dir"
    if config.resume:
        before = stored_config(run.folder, type(config))
        if isinstance(before, PruneConfig) and isinstance(config, PruneConfig):
            align = config.export.align or before.export.align
            config = replace(config, export=replace(config.export, align=align))
        old, new = resolved(before), resolved(config)
        for key, had, now in _differences(old, new):
            raise InputError(
                f"this run has {key} = {had}, not {now}",
                flag="--resume",
                mend="leave that flag out, or start a new run in another --output-dir",
            )
    elif run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
        raise InputError(
            f"{run.folder} exists and is not empty",
            flag=flag,
            mend="add --resume to go on with it, or name another folder",
        )
    parent = next(path for path in (run.folder, *run.folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} cannot be written", flag=flag, mend="name another folder")


def _differences(old: dict, new: dict, path: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key, value in new.items():
        if isinstance(value, dict):
            found += _differences(old[key], value, f"{path}{key}.")
        elif old[key] != value and key not in FREE_TO_CHANGE:
            found.append((f"{path}{key}", old[key], value))
    return found


def open_run(config: PruneConfig | RecoverCommand) -> Run:
    """Creates the folder with its `config.toml`, or opens it to go on.

    Raises:
        InputError: it cannot be written.
    """
    run = Run(config.output_dir)
    if not config.resume:
        stored = replace(config, resume=False, json=False)
        with atomic(run.config_file) as temporary:
            temporary.write_text(tomli_w.dumps(resolved(stored)))
    return run


class MetricsLog:
    """`metrics.jsonl`, a line a step; going on from a step drops the lines after it."""

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None

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
                flag=str(self._path),
                mend="make room, then go on with --resume",
            ) from error


def provenance(seed: int) -> dict[str, Any]:
    """Versions, hardware, seed and command of this process."""
    return {
        "command": " ".join(sys.argv),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Of the libraries that decide what comes out."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    info: dict[str, Any] = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return info


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU that it works on, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
