"""What numbers and words a setting can take, declared in the type of its field, and the one check
of them: `steps: Steps = 150`.

A bound is what torch, the files and a machine can take at most, far above what makes sense.
"""

import dataclasses
import errno
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from disp_llm.config.errors import InputError

Some = Meta(min_length=1)
"""Of a list that must hold something."""

Steps = Annotated[int, Meta(ge=0, le=10**9)]
Tokens = Annotated[int, Meta(ge=1, le=10**12)]
AnyTokens = Annotated[int, Meta(ge=0, le=10**12)]
"""0 = as many as are needed."""

Interval = Annotated[int, Meta(ge=1, le=10**9)]
"""Steps from one thing to the next."""

Window = Annotated[int, Meta(ge=2, le=2**24)]
"""Tokens of a window that is learned from or scored: its first one is not predicted."""

Stride = Annotated[int, Meta(ge=0, le=2**24)]
Length = Annotated[int, Meta(ge=1, le=2**24)]
"""Tokens of a sequence that is read or written."""

Batch = Annotated[int, Meta(ge=1, le=2**16)]
AnyBatch = Annotated[int, Meta(ge=0, le=2**16)]
Sequences = Annotated[int, Meta(ge=1, le=10**6)]
Number = Annotated[int, Meta(ge=0, le=10**6)]
Rank = Annotated[int, Meta(ge=1, le=2**16)]
AnyRank = Annotated[int, Meta(ge=0, le=2**16)]
Multiple = Annotated[int, Meta(ge=1, le=2**16)]
"""Of which widths are multiples."""

AnyMultiple = Annotated[int, Meta(ge=0, le=2**16)]
Points = Annotated[int, Meta(ge=2, le=1000)]
Rounds = Annotated[int, Meta(ge=0, le=10**4)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]

Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
TwoShares = Annotated[
    tuple[ShareBelowOne, ...],
    Meta(min_length=2, max_length=2, description="give two numbers from 0 to below 1"),
]
Size = Annotated[float, Meta(gt=0, le=1, description="give a number in (0, 1]")]
"""A share of the original that is kept."""

Weight = Annotated[float, Meta(gt=0, le=1e9)]
Rate = Annotated[float, Meta(gt=0, le=1000)]
"""A step size of an optimiser."""

Temperature = Annotated[float, Meta(ge=1e-6, le=1000)]
"""By which logits are divided, in float32."""

AnyRate = Annotated[float, Meta(ge=0, le=1000)]
Factor = Annotated[float, Meta(ge=0, le=1e6)]
Shift = Annotated[float, Meta(ge=-80, le=80)]
"""Added to logits, whose sigmoid is 0 or 1 in float32 beyond that."""

Minutes = Annotated[float, Meta(ge=0, le=1e6)]
"""Minutes, up to a week: what waits counts its milliseconds in 32 bits."""

Seconds = Annotated[float, Meta(ge=0, le=3600)]

Word = Annotated[str, Meta(min_length=1, description="name one")]
License = Annotated[
    str, Meta(pattern=r"\A[\w.+-]*\Z", description="give the hub's name for one, such as mit")
]


def require_declared(config: Any) -> None:
    """Refuses numbers, words and lists that the types of a configuration's fields, and of those
    that it holds, do not allow, and names that no file can have.

    Raises:
        InputError: naming the setting, and what it can be.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for name in (entry.name for entry in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            require_declared(value)
        else:
            _require(name, value, hints[name])


def _require(field: str, value: Any, kind: Any) -> None:
    """Refuses one value, and what it holds, where its type does."""
    origin, inner = get_origin(kind), get_args(kind)
    if value is None:
        return
    if origin is Annotated:
        _require(field, value, inner[0])
        base = get_origin(inner[0]) or inner[0]
        for bound in (part for part in inner[1:] if isinstance(part, Meta)):
            try:
                msgspec.convert(value, Annotated[base, bound])
            except msgspec.ValidationError as error:
                hint = bound.description or _range_said(bound, base)
                raise InputError(_wrong(value, bound), field=field, hint=hint) from error
    elif isinstance(value, tuple):
        for one in value:
            _require(field, one, inner[0])
    elif isinstance(value, str | Path):
        _require_name(field, value)
    else:
        for one in inner if origin is not Literal else ():  # one of several types
            _require(field, value, one)


def _wrong(value: Any, bound: Meta) -> str:
    """What is wrong with a value that a bound excludes."""
    if isinstance(value, tuple):
        return f"{len(value)} are given" if value else "none is given"
    if isinstance(value, str):
        return f"'{value}'"
    if math.isnan(value):
        return "nan is no number"
    least = bound.ge if bound.gt is None else bound.gt
    too_small = least is not None and value <= least and value != bound.ge
    return f"{value} is too {'small' if too_small else 'large'}"


def _range_said(bound: Meta, kind: type) -> str:
    """`give a whole number from 2 to 16,777,216`."""
    if kind is tuple:
        return "give one or more"
    low = f"from {bound.ge:,.15g}" if bound.gt is None else f"above {bound.gt:,.15g}"
    high = f"to {bound.le:,.15g}" if bound.lt is None else f"below {bound.lt:,.15g}"
    comma = "" if bound.gt is None and bound.lt is None else ","
    up = "up " if bound.gt is not None and bound.lt is None else ""
    return f"give a {'whole ' if kind is int else ''}number {low}{comma} {up}{high}"


def _require_name(field: str, named: str | Path) -> None:
    """Refuses what cannot be written into JSON and TOML files, and paths that no file can have."""
    said = ""
    try:
        str(named).encode()
        if isinstance(named, Path):
            os.lstat(named)
    except UnicodeEncodeError:
        raise InputError(
            f"'{named}' is not UTF-8", field=field, hint="rename it, or name a link to it"
        ) from None
    except ValueError as error:
        said = str(error)
    except OSError as error:  # all others are for who reads or writes it
        said = "too long" if error.errno == errno.ENAMETOOLONG else ""
    if said:
        what = f"no file can be called {str(named)[:40]!r}… ({said})"
        raise InputError(what, field=field, hint="give another name")
