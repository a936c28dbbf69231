"""What numbers and words a setting can take, declared in the type of its field, and the one check
of them: `steps: Steps = 150`.

A bound is what torch, the files and a machine can take at most, far above what makes sense.
"""

import errno
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from disp_llm.config.errors import InputError
from disp_llm.config.schema import to_path
from disp_llm.config.settings import settings_of

Some = Meta(min_length=1)
"""Of a list that must hold something."""

Steps = Annotated[int, Meta(ge=0, le=10**9)]
Tokens = Annotated[int, Meta(ge=1, le=10**12)]
AnyTokens = Annotated[int, Meta(ge=0, le=10**12)]
"""0 = as many as are needed."""

Window = Annotated[int, Meta(ge=2, le=2**24)]
"""Tokens of a window that is learned from or scored: its first one is not predicted."""

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
Word = Annotated[str, Meta(min_length=1, description="name one")]


def require_declared(config: Any) -> None:
    """Refuses numbers, words and lists that the types of a configuration's fields do not allow, and
    names that no file can have.

    Raises:
        InputError: naming the setting, and what it can be.
    """
    for setting in settings_of(type(config)).values():
        value = setting.of(config)
        for named in value if isinstance(value, tuple) else (value,):
            if isinstance(named, str | Path):
                _require_name(setting.name, named)
        try:
            msgspec.convert(value, setting.declared, dec_hook=to_path)
        except msgspec.ValidationError as error:
            what = " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            hint = setting.advice or f"give {_allowed(error)}"
            raise InputError(what or "none is given", field=setting.name, hint=hint) from error


WORDS = {"`int`": "a whole number", "`float`": "a number", "`str`": "a word", "`array`": "a list"}


def _allowed(error: msgspec.ValidationError) -> str:
    """`a whole number >= 2`."""
    kind, _, bound = str(error).partition(" - at ")[0].removeprefix("Expected ").partition(" ")
    return f"{WORDS.get(kind, kind)} {bound}".rstrip()


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
