"""Plain values, as JSON and TOML files hold them -> values of a declared type, or one line that
says what is wrong."""

import dataclasses
import errno
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import named_path

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]

Amount = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
"""A number that is finite and not negative; JSON files of Python may hold NaN and Infinity."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
"""A finite number above zero."""


def to_path(kind: type, value: Any) -> Path:
    """The path that a string names; msgspec asks for what it cannot convert itself."""
    if kind is Path and isinstance(value, str | Path):
        return named_path(value) if isinstance(value, str) else value
    raise TypeError(f"expected a path, got {type(value).__name__}")


def as_type(
    value: Any,
    kind: Any,
    *,
    field: str,
    hint: str,
    place: str = "",
    to_path: Callable[[type, Any], Path] = to_path,
) -> Any:
    """A plain value as the type that is declared for it: a dataclass, `list[float]`, a `Literal`,
    ... Whole numbers serve as floats and strings as paths; nothing else is converted. Keys that a
    dataclass does not know are ignored. `field` and `hint` are what a message names and advises,
    `place` is where the value lies in the field.

    Raises:
        InputError: a key is missing, or a value is of another type.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=to_path)
    except msgspec.ValidationError as error:
        raise InputError(format_mismatch(error, place), field=field, hint=hint) from error


def format_mismatch(error: msgspec.ValidationError, above: str = "") -> str:
    """The message of a schema with the place in front: `learn.steps: expected int, got str`."""
    what, _, inside = str(error).replace("`", "").partition(" - at ")
    what, place = what[:1].lower() + what[1:], (above + inside.removeprefix("$")).removeprefix(".")
    return f"{place}: {what}" if place else what


def read_toml(path: Path, field: str, hint: str) -> dict[str, Any]:
    """The tables of a TOML file. `field` and `hint` are what a message names and advises.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    try:
        require_file(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also of wrong bytes and huge nesting
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({said})", field=field, hint=hint) from error


def require_known(tables: dict[str, Any], kind: type, field: str, place: str = "") -> None:
    """Refuses a key that no field of a dataclass has, nor one of those that it holds."""
    hints = get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind) if entry.name != "file"]
    for key, value in tables.items():
        if key not in known:
            what = f"unknown key '{place}{key}'" + nearest(key, known)
            raise InputError(what, field=field, hint=f"use keys of {', '.join(known)}")
        if not isinstance(value, dict):
            continue
        if dataclasses.is_dataclass(hints[key]):
            require_known(value, hints[key], field, f"{place}{key}.")
        elif get_origin(hints[key]) is dict:
            of = get_args(hints[key])[1]
            for name, entry in value.items():
                if isinstance(entry, dict):
                    require_known(entry, of, field, f"{place}{key}.{name}.")


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
