"""What a TOML file may say: its keys, and the files that it names."""

import os
import string
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest


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


def found_file(named: Path, file: str, place: str) -> Path:
    """Where a file lies that a TOML file names: environment variables are put in, and relative ones
    lie beside the TOML file.

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
            f"{place}: there is no {path}", field=file, hint="name a file that is there"
        )
    return path
