"""Files and folders -> documents, one at a time. A file's suffix gives its kind:

    .jsonl      one object a line
    .json       an array of objects or of strings; one object; or one object a line
    .csv        comma-separated, column names in the first line
    .parquet    rows
    any other   plain text: one document

Each may be compressed. Reading is lazy: memory holds the documents taken, and one line, cell, batch
of rows or .json file. A value that is not text is refused with its place, not learned. (`datasets`
is not used: it reads tables in blocks, parses dates, silently pads short rows of .csv, has no limit
on line length, and needs a writable cache.)
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import reprlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from disp_llm.config.errors import InputError, said_by
from disp_llm.config.schema import require_file

Read = TypeVar("Read")

TABLES = (".jsonl", ".json", ".csv", ".parquet")

KINDS = (".txt", ".raw", ".md", *TABLES)
"""Suffixes of files that a folder may hold. A file named directly may have any suffix."""

LONGEST = 2**26
"""Most characters of a line, a .csv cell or a .json file, each read at once. Python's default
limit of a cell is 131,072."""

PIECE = 2**20
"""Characters of plain text read at a time."""

BATCH, BUFFER = 32, 2**20
"""Rows of a .parquet file decoded at a time, and bytes of its read buffer."""


class Unusable(Exception):
    """States a problem of a text and its fix; `naming` adds the file and the setting."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


@contextlib.contextmanager
def naming(path: Path | str, field: str) -> Iterator[None]:
    """Adds the file and the setting to an error: raises it as an `InputError`."""
    try:
        yield
    except Unusable as error:
        raise InputError(f"{path} {error.what}", field=field, hint=error.hint) from error
    except UnicodeDecodeError as error:
        hint = "name a text file, or convert it"
        raise InputError(f"{path} is not UTF-8 text", field=field, hint=hint) from error
    except OSError as error:
        what = f"{path}: {error.strerror or error}"
        raise InputError(what, field=field, hint="name a readable file") from error


def read_each(
    paths: Sequence[Path], field: str, read: Callable[[Path], Iterable[Read]]
) -> Iterator[Read]:
    """Yields what `read` finds in files and in files of folders, in order; refuses empty files."""
    for path in paths:
        with naming(path, field):
            files = files_under(path)
        for file in files:
            with naming(file, field):
                empty = True
                for found in read(file):
                    empty = empty and isinstance(found, str) and not found.strip()
                    yield found
                if empty:
                    raise _empty()


def files_under(path: Path) -> list[Path]:
    """Returns the file itself, or all files below a folder, sorted by path.

    Skips hidden files and refuses links to folders.

    Raises:
        Unusable: the folder has no files, or one of an unknown kind.
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
    """Returns the suffix of a file's content, before that of a compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS else suffix


def base_name(path: Path) -> str:
    """Returns the name of a file or folder without its location, since results are shared."""
    name = os.path.basename(os.path.abspath(path))
    return f"{name}/" if path.is_dir() else name


def documents_of(path: Path, column: str, characters: int) -> Iterator[str]:
    """Yields the documents of a file; plain text is split after so many characters."""
    if kind_of_file(path) in TABLES:
        for place, row in rows_of(path, column):
            yield text_of(row, column, place)
    else:
        with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            yield from _plain(text, characters)


def rows_of(path: Path, column: str = "") -> Iterator[tuple[str, Any]]:
    """Yields rows of a table with places such as "line 3"; other files hold a JSON object per line.

    Args:
        column: required column of .csv and .parquet, the only one read from .parquet; "" = none.
    """
    kind = kind_of_file(path)
    with _opened(path) as file:
        if kind == ".parquet":
            yield from _parquet(file, column)
            return
        # The file may begin with a byte order mark; its own line ends are kept.
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            if kind == ".csv":
                yield from _csv(text, column)
            else:
                yield from _json(text) if kind == ".json" else _json_lines(text)


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip
"""Suffixes of compressions, as in notes.txt.gz, and the functions that open such files."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file as bytes, decompressed."""
    require_file(path)
    if not path.stat().st_size:
        raise _empty()
    opener = COMPRESSIONS.get(path.suffix.lower())
    try:
        with opener(path) if opener else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # raised by the system, not by a decompressor
            raise
        raise Unusable(f"is damaged ({said_by(error)})", "make or fetch it again") from error


def _empty() -> Unusable:
    return Unusable("is empty", "leave it out, or make it again")


def _plain(file: io.TextIOBase, characters: int) -> Iterator[str]:
    while document := "".join(_pieces(file, characters)):
        yield document
        characters = PIECE  # `beginning` takes no more; one piece tells it that there is more


def _pieces(file: io.TextIOBase, characters: int) -> Iterator[str]:
    """Yields the next characters in pieces, until so many are read or the file ends."""
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
        return _json_lines(io.StringIO(content, newline=""))
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


def _csv(file: io.TextIOBase, column: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST)
    table = csv.DictReader(_lines(file), strict=True)
    try:
        columns = _require_once(column, list(table.fieldnames or ()))
        for row in table:
            place = f"line {table.line_num}"
            if None in row or None in row.values():
                raise Unusable(
                    f"has not {len(columns)} cells, as columns, in {place}",
                    "mend that line, or put texts with commas in quotes",
                )
            yield place, row
    except csv.Error as error:
        what = f"has no whole row after line {table.line_num} ({said_by(error)})"
        raise Unusable(what, "mend it") from error


def _parquet(file: Any, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    if not isinstance(file, io.BufferedReader):
        raise Unusable("is compressed twice", "unpack it first")
    try:
        table = pyarrow.parquet.ParquetFile(
            file, page_checksum_verification=True, buffer_size=BUFFER
        )
        _require_once(column, table.schema_arrow.names)
        batches = table.iter_batches(BATCH, columns=[column] if column else None)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except pa.ArrowException as error:
        what = f"is no whole Parquet file ({said_by(error)})"
        raise Unusable(what, "make or fetch it again") from error


def _require_once(column: str, columns: list[str]) -> list[str]:
    """Returns the columns; refuses a table without `column`, or with several of that name. If ""
    names none, any may be read, and no name may stand twice."""
    if column and column not in columns:
        raise no_column(column, columns)
    for name in [column] if column else filter(None, columns):
        if columns.count(name) > 1:
            raise Unusable(f"has {columns.count(name)} columns '{name}'", "rename all but one")
    return columns


def text_of(row: Any, column: str, place: str) -> str:
    """Returns the text of a row at a place such as "line 3": a mapping's column, or the row itself.

    Raises:
        Unusable: the column is missing, or its value is not text.
    """
    value, where = row, ""
    if isinstance(row, Mapping):
        if column not in row:
            raise no_column(column, list(row), f" in {place}")
        value, where = row[column], f" as '{column}'"
    if not isinstance(value, str):
        raise Unusable(
            f"has no text but {reprlib.repr(value)}{where} in {place}",
            f"give strings or rows with a column '{column}' (`text_field`), and leave others out",
        )
    return whole_text(value, place)


def no_column(column: str, columns: Iterable[Any], place: str = "") -> Unusable:
    """Returns the error for a table without that column."""
    has = ", but " + ", ".join(map(repr, columns)) if columns else ""
    return Unusable(f"has no column '{column}'{place}{has}", "name the right `text_field`")


def whole_text(text: str, place: str) -> str:
    """Returns the text unchanged.

    Raises:
        Unusable: it has a lone surrogate, which JSON can escape but no tokenizer reads.
    """
    if HALF.search(text):
        what = f"has half a character (a lone surrogate) in {place}"
        raise Unusable(what, "mend or leave out that text")
    return text


HALF = re.compile("[\ud800-\udfff]")


def beginning(documents: Iterable[str], characters: int, field: str, name: str = "") -> list[str]:
    """Returns the first documents, until they hold so many characters. Warns if there are more,
    unless `name` is empty."""
    found: list[str] = []
    read = 0
    for document in documents:
        if read >= characters:
            if name:
                warnings.warn(
                    f"{field}: the first {read:,} characters of {name} are read, and no more: "
                    "shuffle documents that are sorted",
                    stacklevel=3,
                )
            break
        found.append(document)
        read += len(document)
    return found
