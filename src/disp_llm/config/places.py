"""What a TOML file may say: its keys, and the files that it names."""

import dataclasses
import errno
import os
import stat
import string
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from disp_llm.config.errors import InputError, nearest

Name = Annotated[str, Meta(min_length=1)]


def require_known(table: dict[str, Any], known: list[str], file: str, place: str = "") -> None:
    """Refuses keys of a table that mean nothing.

    Args:
        place: of the table in its file, such as `texts.C4.`.

    Raises:
        InputError: naming the key.
    """
    for key in table:
        if key not in known:
            raise InputError(
                f"unknown key '{place}{key}'" + nearest(key, known),
                field=file,
                hint=f"use keys of {', '.join(known)}",
            )


def require_known_entries(tables: dict[str, Any], group: str, kind: type, file: str) -> None:
    """Refuses keys that the dataclass of a group's entries does not have.

    Raises:
        InputError: naming the key.
    """
    entries = tables.get(group)
    known = [f.name for f in dataclasses.fields(kind)]
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict):
            require_known(entry, known, file, f"{group}.{name}.")


def found_files(named: tuple[Path, ...], file: str, place: str) -> tuple[Path, ...]:
    """`found_file` of several."""
    return tuple(found_file(path, file, place) for path in named)


def found_file(named: Path, file: str, place: str) -> Path:
    """Where a file lies that a TOML file names: environment variables are put in, which no message
    says, and relative ones lie beside the TOML file.

    Args:
        place: of the name in that file, for messages.

    Raises:
        InputError: a variable is not set, or there is no such file.
    """
    try:
        written = string.Template(str(named)).substitute(os.environ)
    except KeyError as error:
        raise InputError(
            f"{place}: the environment variable {error.args[0]} is not set",
            field=file,
            hint="set it to a folder",
        ) from error
    except ValueError as error:
        raise InputError(
            f"{place}: {named} has a $ before no name", field=file, hint="write $$ for a $"
        ) from error
    path = Path(file).parent / written
    if not os.path.exists(path):
        raise InputError(
            f"{place}: there is no {named}", field=file, hint="name a file that is there"
        )
    return path


NO_FILES = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
"""What a path may name that has no end, or can be read only once."""


def require_file(path: Path) -> None:
    """Refuses what reading could wait for without end, before it is opened.

    Raises:
        OSError: it is no file, or there is none.
    """
    what = NO_FILES.get(stat.S_IFMT(path.stat().st_mode))
    if what:
        raise OSError(errno.EINVAL, f"{what}, which cannot be read again: write it to a file")
