"""Plain values, as JSON and TOML files hold them -> values of a declared type, or one line that
says what is wrong."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec

from disp_llm.config.errors import InputError
from disp_llm.config.names import named_path

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A whole number that is not negative."""

Size = Annotated[int, msgspec.Meta(ge=1)]
"""A whole number above zero."""

Amount = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
"""A number that is finite and not negative; JSON files of Python may hold NaN and Infinity."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
"""A finite number above zero."""


def as_type(value: Any, kind: Any, *, field: str, hint: str, place: str = "") -> Any:
    """A plain value as the type that is declared for it: a dataclass, `list[float]`, a `Literal`,
    ... Whole numbers serve as floats and strings as paths; nothing else is converted. Keys that a
    dataclass does not know are ignored.

    Args:
        field: the file or setting that the value stands in, for the message.
        hint: what to do about a value that does not fit.
        place: of the value in that file, such as `learn.steps`.

    Raises:
        InputError: a key is missing, or a value is of another type.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=to_path)
    except msgspec.ValidationError as error:
        raise InputError(said_of(error, place), field=field, hint=hint) from error


def said_of(error: msgspec.ValidationError, place: str = "") -> str:
    """The message of a schema with the place in front: `learn.steps: expected int, got str`."""
    what, _, inside = str(error).replace("`", "").partition(" - at ")
    place = (place + inside.removeprefix("$")).removeprefix(".")
    what = what[:1].lower() + what[1:]
    return f"{place}: {what}" if place else what


def to_path(kind: type, value: Any) -> Any:
    """The path that a string names; what msgspec cannot convert itself."""
    if kind is Path and isinstance(value, str | Path):
        return named_path(value) if isinstance(value, str) else value
    raise TypeError(f"expected a path, got {type(value).__name__}")
