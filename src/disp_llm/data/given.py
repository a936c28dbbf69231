"""What a program may hand over as text -> documents or token ids, known by their content."""

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import NAMED_TEXTS, named_path
from disp_llm.data.reading import KINDS, kind_of_file
from disp_llm.data.rows import Unusable, first_documents, text_of

CHARACTERS = 50_000_000
"""Most that is read of an iterable without a length, which may have no end."""


@dataclass(frozen=True)
class GivenText:
    """Text that was read, or handed over in memory: documents, or ids of a tokenizer.

    Raises:
        InputError: it is empty.
    """

    documents: list[str] | None = None
    tokens: Int[Tensor, " N"] | None = None
    field: str = "text"
    """The setting that it was given in."""
    named: str = ""
    """What the files or the data set are called; "" = it lay in memory."""
    held_out: int | None = None
    """Tokens at its end that are for evaluation, where there is no other text for it; None = the
    usual share."""

    def __post_init__(self) -> None:
        documents = self.documents or ()
        if self.tokens is None and all(not text or text.isspace() for text in documents):
            raise InputError("is empty", field=self.field, hint="give some text")
        if self.tokens is not None and not len(self.tokens):
            raise InputError("is empty", field=self.field, hint="give some token ids")

    @property
    def name(self) -> str:
        """What results call it."""
        tokens, documents = self.tokens, self.documents or ()
        found = f"{len(documents):,} documents" if tokens is None else f"{len(tokens):,} token ids"
        return self.named or f"{found} in memory (sha256:{self.sha256[:12]})"

    @property
    def measured_name(self) -> str:
        """What results call it where it is measured on."""
        return self.name

    @cached_property
    def sha256(self) -> str:
        """The hash of the documents, each with its length in front (8 bytes, little-endian), or of
        the ids (8 bytes each)."""
        digest = hashlib.sha256()
        for document in self.documents or ():
            content = document.encode()
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        if self.tokens is not None:
            digest.update(self.tokens.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def joint_sha256(texts: Sequence[Any]) -> str:
    """The hash of several sources in their order; of a single one, its own."""
    if len(texts) == 1:
        return texts[0].sha256
    return hashlib.sha256(b"".join(bytes.fromhex(text.sha256) for text in texts)).hexdigest()


def read_input(
    text: Any, field: str = "text", column: str = "text"
) -> tuple[Path, ...] | GivenText:
    """Files and folders, or text in memory.

    Args:
        text: one path or several, also `self` or `speeches` where it is learned from; strings; a
            `datasets.Dataset`, or any iterable of strings or of rows; token ids as a list, a nested
            list or a tensor.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(text, str | Path):
        text = [text]
    known = isinstance(text, Iterable) and type(text).__name__ != "DataFrame"
    if not known or isinstance(text, _NO_TEXT):
        raise InputError(
            f"cannot be read from {type(text).__name__}",
            field=field,
            hint="give paths, strings, a datasets.Dataset or token ids",
        )
    if isinstance(text, Tensor):
        if text.ndim > 2:
            raise InputError(
                f"is a tensor of {text.ndim} dimensions",
                field=field,
                hint="give the token ids of one text (N), or of rows that follow each other (B, T)",
            )
        return GivenText(tokens=_token_ids(text, field), field=field)
    if isinstance(text, Sequence) and text and all(isinstance(part, str | Path) for part in text):
        return _files_among(text, field) or GivenText(_documents(text, field), field=field)
    if isinstance(text, Sequence) and text and isinstance(text[0], int | list | tuple):
        return GivenText(tokens=_token_ids(text, field), field=field)
    return GivenText(_documents(text, field, column), field=field)


_NO_TEXT = (Mapping, bytes, bytearray, set, frozenset, io.IOBase)
"""What can be iterated over, but gives names of columns or splits, numbers, or parts of texts."""


def _files_among(parts: Sequence[str | Path], field: str) -> tuple[Path, ...]:
    """All of them as paths where they name files or folders; none where they are texts."""
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
    """A `Path` is always a file: from the root where it would be taken for the name of a text."""
    if isinstance(part, str):
        return named_path(part)
    return part.absolute() if str(part) in NAMED_TEXTS else part


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a null character
        return False


def _token_ids(ids: Any, field: str) -> Int[Tensor, " N"]:
    """Ids of a tensor, of a list, or of lists that follow each other."""
    refused = InputError(
        "holds something else than token ids", field=field, hint="give whole numbers from 0 on"
    )
    if not isinstance(ids, Tensor):
        rows = ids if isinstance(ids[0], Sequence) else [ids]
        tokens = [token for row in rows for token in (row if isinstance(row, Sequence) else [None])]
        if any(type(token) is not int or not 0 <= token < 2**63 for token in tokens):
            raise refused
        return torch.tensor(tokens, dtype=torch.long)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or (ids < 0).any():
        raise refused
    return ids.detach().cpu().flatten().long()


def _documents(rows: Iterable[Any], field: str, column: str = "text") -> list[str]:
    texts = (text_of(row, column, f"row {number}") for number, row in enumerate(rows, start=1))
    try:
        if isinstance(rows, Sized):
            return list(texts)
        documents, are_all = first_documents(texts, CHARACTERS)
    except Unusable as error:
        hint = f"give whole texts: strings, or rows with a column '{column}' (`text_field`)"
        raise InputError(error.what, field=field, hint=hint) from error
    if not are_all:
        warnings.warn(
            f"{field}: {len(documents):,} rows of {CHARACTERS:,} characters were read; the rest "
            "is left out, since what is given has no length",
            stacklevel=2,
        )
    return documents
