"""Files and hub data sets -> documents."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from disp_llm.config.errors import InputError


def read_documents(paths: Iterable[Path], column: str, field: str = "text") -> list[str]:
    """The documents of text files: one a .txt or .raw file, one a line of .jsonl or row of
    .parquet.

    Args:
        column: of a .parquet file, or key of a .jsonl line, that holds the text.
        field: the setting that the files were named in, for messages.

    Raises:
        InputError: a file is missing, not text, or lacks the field.
    """
    documents: list[str] = []
    for path in paths:
        try:
            documents += _documents(path, column)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}", field=field, hint="name a readable file"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 text", field=field, hint="name a text file, or convert it"
            ) from error
        except _Unusable as error:
            raise InputError(f"{path} {error.what}", field=field, hint=error.hint) from error
    return documents


class _Unusable(Exception):
    """What is wrong with a file, without its name."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


def _documents(path: Path, column: str) -> list[str]:
    if path.suffix == ".parquet":
        return _parquet(path, column)
    content = path.read_text(encoding="utf-8")
    if "\0" in content:
        raise _Unusable("is binary, not text", "name a text file")
    return _jsonl(content, column) if path.suffix == ".jsonl" else [content]


def _jsonl(content: str, column: str) -> list[str]:
    documents = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                documents.append(str(json.loads(line)[column]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise _Unusable(
                    f"has no JSON object with '{column}' in line {number}",
                    "name the right `text_field`",
                ) from error
    return documents


def _parquet(path: Path, column: str) -> list[str]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path), columns=[column])
    except (ValueError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise _Unusable(
            f"has no column '{column}' that can be read", "name the right `text_field`"
        ) from error
    return [str(row) for row in table[column]]


def read_dataset(name: str, column: str, default_split: str) -> list[str]:
    """The rows of a column of a hub data set NAME:CONFIG[:SPLIT].

    Raises:
        InputError: not found, not reachable, or without the column.
    """
    import datasets

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(repository, config or None, split=split or default_split)
        return [str(row) for row in rows[column]]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot load {name} ({first})",
            field="dataset",
            hint="check NAME:CONFIG:SPLIT, `text_field` and the network, or name files in `text`",
        ) from error


def read_given(
    paths: Sequence[Path], dataset: str, column: str, split: str, field: str = "text"
) -> tuple[list[str], str] | None:
    """Documents of a hub data set or of files, and what to call them; None where neither is named.

    Raises:
        InputError: a file or the data set is unusable.
    """
    if dataset:
        return read_dataset(dataset, column, split), dataset
    if paths:
        return read_documents(paths, column, field), ", ".join(str(path) for path in paths)
    return None
