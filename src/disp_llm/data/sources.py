"""What a program may hand over as text -> documents or token ids, with a name for provenance."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError

CHARACTERS = 50_000_000
"""Most that is read of an iterable without a length, which may have no end."""


@dataclass(frozen=True)
class GivenText:
    """Text that was handed over in memory: documents, or ids of a tokenizer."""

    documents: list[str] | None = None
    tokens: Int[Tensor, " N"] | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        digest = hashlib.sha256()
        if self.documents is not None:
            for document in self.documents:
                digest.update(document.encode())
            return f"{len(self.documents):,} documents in memory (sha256:{digest.hexdigest()[:12]})"
        assert self.tokens is not None
        digest.update(self.tokens.numpy().tobytes())
        return f"{len(self.tokens):,} token ids in memory (sha256:{digest.hexdigest()[:12]})"


def read_input(text: Any, field: str = "text") -> tuple[Path, ...] | GivenText:
    """Files, or text in memory.

    Args:
        text: one path or several; strings; a `datasets.Dataset`, or any iterable of strings or of
            rows with a column `text`; token ids as a list, a nested list or a tensor.
        field: the setting that it was given as.

    Raises:
        InputError: it is none of these, or a string that is neither a file nor a text.
    """
    if isinstance(text, Path):
        return (text,)
    if isinstance(text, str):
        if _is_file(text):
            return (Path(text),)
        if not any(character.isspace() for character in text.strip()):
            raise InputError(f"no such file: {text}", field=field, hint="name a file, or give text")
        return GivenText(documents=[text])
    if isinstance(text, Tensor):
        return GivenText(tokens=text.detach().cpu().flatten().long())
    if isinstance(text, Sequence) and text and all(isinstance(part, Path) for part in text):
        return tuple(text)
    if isinstance(text, Sequence) and text and all(isinstance(part, str) for part in text):
        if all(_is_file(part) for part in text):
            return tuple(Path(part) for part in text)
        return GivenText(documents=list(text))
    if isinstance(text, Sequence) and text and isinstance(text[0], int | Sequence):
        return GivenText(tokens=_tokens(text, field))
    if isinstance(text, Iterable):
        return GivenText(documents=_documents(text, field))
    raise InputError(
        f"cannot be read from {type(text).__name__}",
        field=field,
        hint="give paths, strings, a datasets.Dataset or token ids",
    )


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a null character
        return False


def _tokens(ids: Sequence[Any], field: str) -> Int[Tensor, " N"]:
    rows = ids if isinstance(ids[0], Sequence) else [ids]
    try:
        return torch.tensor([token for row in rows for token in row], dtype=torch.long)
    except (TypeError, ValueError) as error:
        raise InputError(
            "holds something else than token ids", field=field, hint="give whole numbers"
        ) from error


def _documents(rows: Iterable[Any], field: str) -> list[str]:
    documents, characters = [], 0
    for number, row in enumerate(rows, start=1):
        document = row.get("text") if isinstance(row, Mapping) else row
        if not isinstance(document, str):
            raise InputError(
                f"row {number} has no text",
                field=field,
                hint="give strings, or rows with a column `text`",
            )
        documents.append(document)
        characters += len(document)
        if characters > CHARACTERS:
            break
    if not documents:
        raise InputError("is empty", field=field, hint="give some text")
    return documents
