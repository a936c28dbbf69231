"""Files and folders -> documents, one after the other, by the kind that a file's suffix names.

    .jsonl      one object a line
    .json       an array of objects or of strings; one object; or one object a line
    .csv        comma-separated, the columns named in the first line
    .parquet    rows
    any other   plain text: one document

Each may be compressed. No more of a file is in memory than who reads its documents has taken, and
one line, cell or value. What is no text is refused by its place, not learned as a word.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from disp_llm.config.errors import InputError, said_by
from disp_llm.config.schema import require_file
from disp_llm.data.rows import Unusable, no_column, text_of

Read = TypeVar("Read")

KINDS = (".txt", ".raw", ".md", ".jsonl", ".json", ".csv", ".parquet")
"""What a folder may hold. A file that is named itself may have any suffix."""

LONGEST = 2**26
"""Characters of a line, a cell or a JSON value, which are read at once; Python's own limit of a
cell is 131,072."""

PIECE = 2**20
"""Characters of plain text that are looked at together."""

BATCH, BUFFER = 32, 2**20
"""Rows of a .parquet file that are unpacked together, and bytes of it that are read at once."""


@contextlib.contextmanager
def naming(path: Path, field: str) -> Iterator[None]:
    """Says of which file of which setting an error is."""
    try:
        yield
    except Unusable as error:
        raise InputError(f"{path} {error.what}", field=field, hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", field=field, hint="name a text file, or convert it"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", field=field, hint="name a readable file"
        ) from error


def read_each(
    paths: Sequence[Path], field: str, read: Callable[[Path], Iterable[Read]]
) -> Iterator[Read]:
    """What a function reads of files, and of those in folders, in order."""
    for path in paths:
        with naming(path, field):
            files = files_under(path)
        for file in files:
            with naming(file, field):
                yield from read(file)


def files_under(path: Path) -> list[Path]:
    """The file itself, or the files of a folder and the folders in it, in order of their names.

    Hidden files are left out; a link to a folder is refused.

    Raises:
        Unusable: a folder without a file, or with one of a kind that is not known.
    """
    if not path.is_dir():
        return [path]
    files: list[Path] = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts) or (
            file.is_dir() and not file.is_symlink()
        ):
            continue
        if kind_of_file(file) not in KINDS or not file.is_file():
            raise Unusable(
                f"holds {name}, which is none of {' '.join(KINDS)}",
                "move it elsewhere, or name the files that are meant",
            )
        files.append(file)
    if not files:
        raise Unusable("holds no files", "name a folder of text files")
    return files


def kind_of_file(path: Path) -> str:
    """The suffix that says what a file holds, without that of a compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS else suffix


def base_name(path: Path) -> str:
    """What results, which are shared, call a file or a folder: where it lies is not said."""
    name = os.path.basename(os.path.abspath(path))
    return f"{name}/" if path.is_dir() else name


def documents_of(path: Path, column: str, characters: int) -> Iterator[str]:
    """The documents of a file; plain text goes on in another after so many characters.

    Raises:
        Unusable: damaged, binary, empty, or something else than text in a row.
    """
    empty = True
    for document in _documents(path, column, characters):
        empty = empty and (not document or document.isspace())
        yield document
    if empty:
        raise _empty()


def _documents(path: Path, column: str, characters: int) -> Iterator[str]:
    kind = kind_of_file(path)
    if kind == ".parquet":
        with _opened(path) as file:
            yield from _parquet(file, column)
    elif kind == ".csv":
        with _opened_text(path, newline="") as text:
            yield from _csv(_lines(text), column)
    elif kind in (".json", ".jsonl"):
        for place, row in rows_of(path):
            yield text_of(row, column, place)
    else:
        with _opened_text(path, "utf-8") as text:
            yield from _plain(text, characters)


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON file, each with its place, such as "line 3": of any kind but .json one a
    line."""
    empty = True
    with _opened_text(path) as text:
        for found in _json(text) if kind_of_file(path) == ".json" else _json_lines(text):
            empty = False
            yield found
    if empty:
        raise _empty()


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip
"""Suffixes behind that of the kind, as in notes.txt.gz, and what opens such a file."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file as bytes, decompressed."""
    require_file(path)
    if path.is_file() and not path.stat().st_size:
        raise _empty()
    opener = COMPRESSIONS.get(path.suffix.lower())
    try:
        with opener(path) if opener else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system, not of a decompressor
            raise
        raise Unusable(f"is damaged ({said_by(error)})", "make or fetch it again") from error


def _empty() -> Unusable:
    return Unusable("is empty", "leave it out, or make it again")


@contextlib.contextmanager
def _opened_text(
    path: Path, encoding: str = "utf-8-sig", newline: str | None = None
) -> Iterator[io.TextIOWrapper]:
    """A file as text; a table may begin with a byte order mark."""
    with (
        _opened(path) as file,
        io.TextIOWrapper(file, encoding=encoding, newline=newline) as text,
    ):
        yield text


def _plain(file: io.TextIOBase, characters: int) -> Iterator[str]:
    while document := "".join(_pieces(file, characters)):
        yield document
        characters = PIECE  # who has so many takes no more, and sees that there is more


def _pieces(file: io.TextIOBase, characters: int) -> Iterator[str]:
    """The next characters, so many or as many as there are."""
    while characters > 0 and (piece := file.read(min(PIECE, characters))):
        characters -= len(piece)
        yield _as_text(piece)


def _lines(file: io.TextIOBase) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), start=1):
        if len(_as_text(line)) > LONGEST:
            what = f"has more than {LONGEST:,} characters in line {number}"
            raise Unusable(what, "put line ends into it")
        yield line


def _as_text(content: str) -> str:
    if "\0" in content:
        raise Unusable("is binary, not text", "name a text file")
    return content


def _json(text: io.TextIOBase) -> Iterator[tuple[str, Any]]:
    content = "".join(_pieces(text, LONGEST + 1))
    if len(content) > LONGEST:
        raise Unusable(f"has more than {LONGEST:,} characters", "make a .jsonl file of it")
    try:
        found = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            raise Unusable(f"is no whole JSON array ({said_by(error)})", "mend it") from error
        return _json_lines(io.StringIO(content))
    rows = found if isinstance(found, list) else [found]
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _json_lines(text: io.TextIOBase) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Unusable(
                    f"has no JSON object in line {number}", "mend or delete that line"
                ) from error
            yield f"line {number}", row


def _csv(lines: Iterable[str], column: str) -> Iterator[str]:
    csv.field_size_limit(LONGEST)
    rows = csv.reader(lines, strict=True)
    line = 1
    try:
        header = next(rows, [])
        if header.count(column) != 1:
            raise no_column(column, header)
        place, line = header.index(column), rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise Unusable(
                    f"has {len(row)} cells in line {line} and {len(header)} columns",
                    "mend that line, or put texts with commas in quotes",
                )
            if row:
                yield row[place]
            line = rows.line_num + 1
    except csv.Error as error:
        raise Unusable(f"has no whole row in line {line} ({said_by(error)})", "mend it") from error


def _parquet(file: Any, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet

    if not isinstance(file, io.BufferedReader):
        raise Unusable("is compressed twice", "unpack it first")
    try:
        table = pyarrow.parquet.ParquetFile(
            file, page_checksum_verification=True, buffer_size=BUFFER
        )
        columns = table.schema_arrow.names
        if columns.count(column) != 1:
            raise no_column(column, columns)
        batches = table.iter_batches(BATCH, columns=[column])
        values = (value for batch in batches for value in batch.column(0).to_pylist())
        for number, value in enumerate(values, start=1):
            yield text_of({column: value}, column, f"row {number}")
    except pa.ArrowException as error:
        what = f"is no whole Parquet file ({said_by(error)})"
        raise Unusable(what, "make or fetch it again") from error
