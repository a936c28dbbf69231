"""Objects from a program -> text or examples. Other objects are refused, not guessed at."""

import io
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import NAMED_TEXTS, named_path
from disp_llm.data.examples import FORMS, GivenExamples, TaskExample, example_of
from disp_llm.data.reading import KINDS, Unusable, beginning, kind_of_file
from disp_llm.data.sources import EVERYTHING, GivenText, texts_of

WITHOUT_LENGTH = 50_000_000
"""Most characters read from an iterable without a length, since it may be endless."""


def read_input(
    text: Any, field: str = "text", column: str = "text"
) -> tuple[Path, ...] | GivenText:
    """Returns paths of files and folders, or text in memory.

    Args:
        text: one path or several, or names such as `self` and `speeches` if `field` is "text";
            strings; a `datasets.Dataset`, or any iterable of strings or rows; token ids as a list,
            a nested list or a tensor.

    Raises:
        InputError: `text` is none of these, or names a file that does not exist.
    """
    parts = [text] if isinstance(text, str | Path) else text
    known = isinstance(parts, Iterable) and type(parts).__name__ != "DataFrame"
    if not known or isinstance(parts, _NO_TEXT):
        raise InputError(
            f"cannot be read from {type(text).__name__}",
            field=field,
            hint="give paths, strings, a datasets.Dataset or token ids",
        )
    if isinstance(parts, Sequence) and parts and all(isinstance(one, str | Path) for one in parts):
        paths = _files_among(parts, field)
        if paths:
            return paths
    elif isinstance(parts, Tensor) or (
        isinstance(parts, Sequence) and parts and isinstance(parts[0], int | list | tuple)
    ):
        return GivenText(tokens=_token_ids(parts, field), field=field)
    texts = texts_of(parts, column)
    try:
        if isinstance(parts, list | tuple):
            return GivenText(list(texts), field=field)
        has_end = isinstance(parts, Sized)  # a `datasets.Dataset` may be larger than memory
        most = EVERYTHING if has_end else WITHOUT_LENGTH
        name = "a data set" if has_end else "an iterable without a length"
        return GivenText(beginning(texts, most, field, name), field=field)
    except Unusable as error:
        raise InputError(error.what, field=field, hint=error.hint) from error


_NO_TEXT = (Mapping, bytes, bytearray, set, frozenset, io.IOBase)
"""Iterables that yield names of columns or splits, numbers, or parts of texts, so are refused."""


def _files_among(parts: Sequence[str | Path], field: str) -> tuple[Path, ...]:
    """Returns the parts as paths, or () if they are texts; refuses names of missing files."""
    texts = NAMED_TEXTS if field == "text" else ()
    unknown = [
        part for part in parts if not (isinstance(part, Path) or part in texts or _exists(part))
    ]
    if not unknown:
        return tuple(_path(part) for part in parts)
    some = len(unknown) < len(parts)
    must = any(isinstance(part, Path) for part in parts)
    for part in map(str, unknown):
        word, known = len(part.split()) == 1, kind_of_file(Path(part)) in KINDS
        alone = word and (known or len(parts) == 1)
        if alone or (some and (must or word or known)):
            raise InputError(f"no such file: {part}", field=field, hint="name a file, or give text")
    return ()


def _path(part: str | Path) -> Path:
    """Makes a path absolute if it equals the name of a text: a `Path` always means a file."""
    if isinstance(part, str):
        return named_path(part)
    return part.absolute() if str(part) in NAMED_TEXTS else part


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long for a file name, or with a null character
        return False


def _token_ids(ids: Any, field: str) -> Int[Tensor, " N"]:
    """Returns the ids of a tensor (N) or (B, T), of a list, or of concatenated lists."""
    if isinstance(ids, Tensor):
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.ndim <= 2 and whole and not (ids < 0).any():
            return ids.detach().cpu().flatten().long()
    else:
        rows = ids if isinstance(ids[0], Sequence) else [ids]
        tokens = [token for row in rows for token in (row if isinstance(row, Sequence) else [None])]
        if all(type(token) is int and 0 <= token < 2**63 for token in tokens):
            return torch.tensor(tokens, dtype=torch.long)
    raise InputError(
        "holds something else than token ids",
        field=field,
        hint="give whole numbers from 0 on: of one text (N), or rows that follow each other (B, T)",
    )


def read_input_examples(
    given: Any, template: str, field: str = "examples"
) -> tuple[Path, ...] | GivenExamples:
    """Returns paths of files and folders, or examples in memory (rows as in files, `TaskExample`s).

    Raises:
        InputError: the input is none of these, mixes the kinds, or has a row that is no example.
    """
    parts = [given] if isinstance(given, str | Path) else given
    if isinstance(parts, Sequence) and parts and all(isinstance(x, str | Path) for x in parts):
        return tuple(map(Path, parts))
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"cannot be read from {type(given).__name__}", field=field, hint=FORMS)
    try:
        found = [
            row if isinstance(row, TaskExample) else example_of(row, f"row {number}")
            for number, row in enumerate(given, start=1)
        ]
    except Unusable as error:
        raise InputError(error.what, field=field, hint=error.hint) from error
    if not found:
        raise InputError("is empty", field=field, hint="give some")
    if len({isinstance(one, TaskExample) for one in found}) > 1:
        raise InputError(
            "has examples with a loss of their own and others with answers",
            field=field,
            hint="give one kind of them",
        )
    return GivenExamples(tuple(found), field, template=template)
