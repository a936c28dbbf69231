"""What a task was made of: the files that its settings name, known again by size and time or,
where these differ, by their hash."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from disp_llm.config.errors import InputError
from disp_llm.config.schema import Count, require_file
from disp_llm.runs.sums import sha256_of


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was read."""

    size: Count
    modified: int
    """Nanoseconds since 1970."""
    sha256: str


Stamps = dict[str, dict[str, Stamp]]
"""By the setting that names it, and by its path, every file that was read."""

Files = dict[str, list[Path]]


def stamped(files: Files) -> dict[str, Any]:
    """The files as they are now: `Stamps`, as JSON files hold them."""
    return {s: msgspec.to_builtins(_stamped(paths, s)) for s, paths in files.items()}


def _stamped(paths: list[Path], setting: str) -> dict[str, Stamp]:
    path = Path()
    try:
        for path in paths:
            require_file(path)  # hashing a pipe would wait for ever
        states, sums = [path.stat() for path in paths], sha256_of(paths)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror}",
            field=setting,
            hint="name a readable file",
        ) from error
    return {
        str(path): Stamp(state.st_size, state.st_mtime_ns, sums[path])
        for path, state in zip(paths, states, strict=True)
    }


def require_unchanged(before: Stamps, files: Files, folder: Path) -> None:
    """Refuses to go on in a folder that was made of other files than are named now. What is gone
    altogether is nobody's change.

    Args:
        before: what was read then.
        files: what the settings name now.

    Raises:
        InputError: naming the setting and the file.
    """
    for setting, stamps in before.items():
        now = {str(path): path for path in files.get(setting, ())}
        if now and (change := _change(stamps, now, setting)):
            raise InputError(
                f"is not what {folder} was made of ({change})",
                field=setting,
                hint="bring back what it was, or begin in a new `output_dir`; "
                "`anyway` goes on all the same",
            )


def _change(stamps: dict[str, Stamp], now: dict[str, Path], setting: str) -> str:
    """The first file that was added, taken away or changed; empty where none was."""
    for name in now.keys() - stamps.keys():
        return f"{Path(name).name} was not there"
    for name in stamps.keys() - now.keys():
        return f"{Path(name).name} is missing"
    states = {name: path.stat() for name, path in now.items()}
    other = [
        path
        for name, path in now.items()
        if (states[name].st_size, states[name].st_mtime_ns)
        != (stamps[name].size, stamps[name].modified)
    ]
    for name, found in _stamped(other, setting).items():
        if found.sha256 != stamps[name].sha256:
            return f"{Path(name).name} has changed"
    return ""
