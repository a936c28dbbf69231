"""Plain values, as JSON and TOML files hold them -> values of a declared type, or one line that
says what is wrong."""

from pathlib import Path
from typing import Any

import msgspec

from disp_llm.config.errors import InputError


def as_type(value: Any, kind: Any, *, field: str, hint: str) -> Any:
    """A plain value as the type that is declared for it: a dataclass, `list[float]`, a `Literal`,
    ... Whole numbers serve as floats and strings as paths; nothing else is converted.

    Args:
        field: the file or setting that the value stands in, for the message.
        hint: what to do about a value that does not fit.

    Raises:
        InputError: a key is missing, or a value is of another type.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise InputError(said_of(error), field=field, hint=hint) from error


def said_of(error: msgspec.ValidationError) -> str:
    """The message of a schema with the place in front: `learn.steps: expected int, got str`."""
    what, _, place = str(error).replace("`", "").partition(" - at ")
    what = what[:1].lower() + what[1:]
    place = place.removeprefix("$").removeprefix(".")
    return f"{place}: {what}" if place else what


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected a path, got {type(value).__name__}")
