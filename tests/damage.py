"""Ways in which a file can be damaged, and what reading it must then give."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from disp_llm.config.errors import InputError

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "wrong bytes": lambda whole: whole[:12] + b"\xff\xfe\x00" + whole[15:],
    "another kind of file": lambda whole: b"\x89PNG\r\n" + whole[::-1],
}
"""What can become of any file."""


def _flipped(whole: bytes) -> bytes:
    """With one bit of its middle changed."""
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if whole else b"\0"


def _deleted(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "a").write_text("a")


def _written(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(change(path.read_bytes())))


def void(value: object) -> None:
    """Nothing, in place of what a function gives."""


def _without_line(number: int) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        lines = whole.splitlines(keepends=True)
        del lines[number % len(lines)]
        return b"".join(lines)

    return change


FILES: dict[str, Callable[[Path], None]] = {
    **{how: _written(change) for how, change in BYTES.items()},
    "flipped": _written(_flipped),
    "longer": _written(lambda whole: whole + b"\n#"),
    "deleted": _deleted,
    "a folder": _a_folder,
}
"""What can become of a file and of its name."""

LINES = {f"without line {number}": _written(_without_line(number)) for number in (0, 1, -1)}
"""What can become of a list of lines besides."""

STRAY = {
    "model-00001-of-00002.safetensors": b"junk",
    "model.fp16.safetensors": b"",
    "model.safetensors.index.json": b"{}",
    "x.model": b"secret",
    "LICENSE.key": b"secret",
    "modeling_evil.py": b"raise SystemExit",
    "deep/model.safetensors": b"junk",
}
"""Files that nobody of ours has put into a model folder, as they may be left there."""


def ways(path: Path) -> dict[str, Callable[[Path], None]]:
    """All that can become of a file of this name."""
    return FILES | (LINES if path.name in ("SHA256SUMS", "metrics.jsonl") else {})


NESTED = b"[" * 200_000
"""JSON and TOML that no reader can follow to the end."""

OTHERS = (None, "x", -3, 0.5, True, [], {})
"""Values of every type, of which a key takes few."""

NUMBERS = (-0.5, math.nan, math.inf)
"""What is a number and yet no figure."""


def damaged_values(whole: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The object with, at one place at a time, a key or an item dropped, or a value of another
    type; and what was done."""
    for place, held in _places(whole):
        name = ".".join(map(str, place))
        yield f"{name} dropped", _changed(whole, place)
        others = [value for value in OTHERS if type(value) is not type(held)]
        for value in (*others, *NUMBERS) if type(held) in (int, float) else others:
            yield f"{name} = {value!r}", _changed(whole, place, value)


def _places(value: Any, place: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, held in items:
        yield (*place, key), held
        if isinstance(held, dict | list):
            yield from _places(held, (*place, key))


def _changed(whole: Any, place: tuple, *value: Any) -> Any:
    made = copy.deepcopy(whole)
    parent = made
    for key in place[:-1]:
        parent = parent[key]
    if value:
        parent[place[-1]] = value[0]
    else:
        del parent[place[-1]]
    return made


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


def wrongly_read(
    path: Path, read: Callable[[], Any], free: tuple[str, ...] = ()
) -> tuple[list[str], int]:
    """What was done to a JSON file that reading neither refused in one line nor was the same for,
    and how much it refused; the file is whole again at the end.

    Args:
        free: the last names of places that may be missing or null.
    """
    stored, whole = path.read_bytes(), read()
    wrong, refused = [], 0
    changed = [(how, damage(stored)) for how, damage in BYTES.items()]
    changed += [(how, json.dumps(v).encode()) for how, v in damaged_values(json.loads(stored))]
    for how, damaged in changed:
        path.write_bytes(damaged)
        found = outcome(read)
        place, _, made = how.partition(" ")
        may_miss = made in ("dropped", "= None") and place.split(".")[-1] in free
        refused += names(found, path)
        if not (names(found, path) or found == whole or may_miss):
            wrong.append(f"{how}: {found}" if isinstance(found, InputError) else how)
    path.write_bytes(stored)
    return wrong, refused


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def rewrite(path: Path, **changes: Tensor | None) -> None:
    """Changes or, with None, drops tensors of a file; `__` in a name stands for a dot."""
    tensors, metadata = tensors_of(path)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value.contiguous()
    save_file(tensors, path, metadata=metadata)
