"""Checks of single values, from which every configuration builds its own `validate`.

All raise `InputError` naming the field; NaN passes none of them.
"""

import dataclasses
import errno
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError

LONGEST_NAME = 200
"""Bytes of a name: file systems take 255, and what is written lies under a longer one at first."""


def require_positive(**values: float) -> None:
    """Refuses 0 and less, and what is not finite."""
    for field, value in values.items():
        if not value > 0:
            raise InputError("too small", field=field, hint="give a larger number")
        require_finite(**{field: value})


def require_not_negative(**values: float) -> None:
    """Refuses what is less than 0, and what is not finite."""
    for field, value in values.items():
        if value < 0:
            raise InputError(f"{value} is negative", field=field, hint="give 0 or more")
        require_finite(**{field: value})


def require_finite(**values: float) -> None:
    """Refuses infinity, and what is no number."""
    for field, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"{value}", field=field, hint="give a finite number")


def require_weights(count: int, of: str, **values: tuple[float, ...]) -> None:
    """Refuses weights, where any are given, that are not one for each of `count` things, or not
    finite numbers above 0; `of` says what they weigh."""
    for field, weights in values.items():
        wrong = [weight for weight in weights if not 0 < weight < math.inf]
        if wrong or (weights and len(weights) != count):
            raise InputError(
                f"{wrong[0]:g}" if wrong else f"{len(weights)} for {count}",
                field=field,
                hint=f"give one number above 0 for each {of}",
            )


def require_at_least(least: int, **values: int | tuple[int, ...]) -> None:
    """Refuses a number, or any number of a list, below `least`; a list must hold one."""
    for field, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or min(numbers) < least:
            raise InputError("too small", field=field, hint=f"give {least} or more")


def require_share(**values: float) -> None:
    """Refuses what is not between 0 and 1, both included."""
    for field, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{value}", field=field, hint="give a number from 0 to 1")


def require_below_one(**values: float) -> None:
    """Refuses what is not in [0, 1)."""
    for field, value in values.items():
        if not 0 <= value < 1:
            raise InputError(f"{value}", field=field, hint="give a number in [0, 1)")


def require_default(config: Any, names: Iterable[str], what: str, hint: str) -> None:
    """Refuses settings of a configuration that were changed although nothing uses them."""
    for name in names:
        if getattr(config, name) != getattr(type(config), name):
            raise InputError(what, field=name, hint=hint)


def require_alternatives(config: Any, given: Iterable[str]) -> None:
    """Refuses settings that were given together although one takes the other's place, which only
    who reads them can tell: the other has a value in any case."""
    named = set(given)
    for setting, in_place in getattr(config, "ALTERNATIVES", ()):
        if {setting, in_place} <= named:
            raise InputError(
                f"given together with `{in_place}`", field=setting, hint="choose one of them"
            )


def require_sizes(**values: tuple[float, ...]) -> None:
    """Refuses a size outside (0, 1], a repeated one, two of one name, or none at all."""
    for field, sizes in values.items():
        for size in sizes:
            if not 0 < size <= 1:
                raise InputError(
                    f"{size} is not a share", field=field, hint="give a number in (0, 1]"
                )
        if not sizes:
            raise InputError("no size is given", field=field, hint="give one or more, such as 0.5")
        if len(set(sizes)) < len(sizes):
            raise InputError("a size is repeated", field=field, hint="give each size once")
        named: dict[str, float] = {}
        for size in sizes:  # results and files know a size by this name
            other = named.setdefault(f"{size:g}", size)
            if other != size:
                raise InputError(
                    f"{other} and {size} are both called {size:g}",
                    field=field,
                    hint="give sizes that differ in their first six digits",
                )


def require_file_size(**values: str) -> None:
    """Refuses what is not the size of a file, such as 5GB."""
    for field, size in values.items():
        if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", size, re.IGNORECASE):
            raise InputError(f"{size}", field=field, hint="give a size such as 5GB")


def require_paths(config: Any) -> None:
    """Refuses, in all settings of a configuration, names that no file can have: too long, or with a
    null byte."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            require_paths(value)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                _require_path(entry.name, path)


def _require_path(field: str, path: Path) -> None:
    said = ""
    try:
        os.lstat(path)
    except ValueError as error:
        said = str(error)
    except OSError as error:  # all others are for who reads or writes it
        said = "too long" if error.errno == errno.ENAMETOOLONG else ""
    if said:
        what = f"no file can be called {str(path)[:40]!r}… ({said})"
        raise InputError(what, field=field, hint="give another name")


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
