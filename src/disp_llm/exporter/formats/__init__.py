"""Formats that an exported folder can be written in: a file each, and its name as the row.

A format is a module here with two functions. `check(folder)` refuses in one line what the format
cannot hold. `write(job)` says what the new folder holds. Its row is its name in
`disp_llm.config.names.Format`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from disp_llm.config.names import Format
from disp_llm.config.parts import TextConfig

Contents = dict[str, Path | bytes]
"""What a folder will hold, by name: a file as it is, or other bytes."""


@dataclass(frozen=True)
class Job:
    """An exported folder that is written in another format."""

    folder: Path
    files: dict[str, Path]
    """The files of it that belong to the model, by name."""
    place: str
    """What the card calls the new place."""
    aside: Path
    """A folder for new files, which may be the new place itself."""
    text: TextConfig
    """What a calibration reads; it may name no text."""
    device: str
    progress: Callable[[int, int], None]


def writer_of(name: Format) -> Any:
    """The module of a format, imported when it is asked for."""
    return import_module(f"{__name__}.{name}")


def json_bytes(value: dict[str, Any]) -> bytes:
    """What a file of JSON holds."""
    return (json.dumps(value, indent=2) + "\n").encode()
