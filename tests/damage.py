"""Ways in which a file can be damaged, and what reading it must then do."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "wrong bytes": lambda whole: whole[:9] + b"\xff\xfe\x00" + whole[12:],
    "nested without end": lambda whole: b"[" * 200_000,
    "another kind of file": lambda whole: b"= 5\n" + whole[::-1],
}
"""What can become of any file."""

OTHER_VALUES = (None, "x", -3, 0.5, math.nan, math.inf, True, [], {}, [[1]], {"x": {"y": 1}})
"""Values of every type, of which a key takes few."""


def damaged_values(whole: Any, place: tuple = ()) -> Iterator[tuple[str, Any]]:
    """The value with, at one place at a time, a key dropped or a value of another type."""
    for where, parent, key in list(_places(whole)):
        name = ".".join(map(str, where))
        other = copy.deepcopy(whole)
        del _at(other, where[:-1])[key]
        if isinstance(parent, dict):
            yield f"{name} dropped", other
        for value in OTHER_VALUES:
            if type(value) is not type(parent[key]) or value != value or value == math.inf:
                other = copy.deepcopy(whole)
                _at(other, where[:-1])[key] = value
                yield f"{name} = {value!r}", other


def _places(value: Any, place: tuple = ()) -> Iterator[tuple[tuple, Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*place, key), value, key
        if isinstance(inner, dict | list):
            yield from _places(inner, (*place, key))


def _at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def outcome(read: Callable[[], Any]) -> Any:
    """What reading gives, or the error that a user sees."""
    try:
        return read()
    except InputError as error:
        return error


def names(found: Any, path: Path) -> bool:
    """Whether this is one line that names the file and says what to do."""
    is_line = isinstance(found, InputError) and "\n" not in str(found)
    return is_line and found.field == str(path) and bool(found.hint)
