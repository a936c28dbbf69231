"""Checks of values that their types cannot declare, from which configurations build their
`validate`. All raise `InputError` naming the field."""

import os
from pathlib import Path

from disp_llm.config.errors import InputError

LONGEST_NAME = 200
"""Bytes of a name: file systems take 255, and what is written lies under a longer one at first."""


def require_sizes(**values: tuple[float, ...]) -> None:
    """Refuses sizes that results and files would call the same, or none at all."""
    for field, sizes in values.items():
        if not sizes:
            raise InputError("no size is given", field=field, hint="give one or more, such as 0.5")
        if len({f"{size:g}" for size in sizes}) < len(sizes):
            what = "a size is repeated, to six digits"
            raise InputError(what, field=field, hint="give each size once")


def require_new(**places: Path) -> None:
    """Refuses a place where something lies, or where nothing can be written."""
    for field, path in places.items():
        if os.path.lexists(path):
            what = "is a folder" if path.is_dir() else "exists"
            raise InputError(f"{path} {what}", field=field, hint="give another name")
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            raise InputError(
                f"a name of more than {LONGEST_NAME} bytes", field=field, hint="give a shorter one"
            )
        above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        if not above.is_dir():
            raise InputError(f"{above} is a file", field=field, hint="name a place in a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{above} cannot be written", field=field, hint="name another place")


def require_outside(folder: Path, **places: Path) -> None:
    """Refuses a place inside of the folder that is copied there."""
    for field, path in places.items():
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{path} lies inside the folder that is copied",
                field=field,
                hint="name a place outside of it",
            )
