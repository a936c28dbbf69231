"""The content of one file -> its documents, one after the other, by the kind that its suffix names.

    .jsonl      one object a line
    .json       an array of objects or of strings; one object; or one object a line
    .csv        comma-separated, the columns named in the first line
    .parquet    rows
    any other   plain text: one document

JSON and CSV are read here, for the numbers of their lines; none of the readers writes to a cache.
No more of a file is in memory than who reads its documents has taken, and one line, cell or value.
"""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from disp_llm.config.errors import said_by
from disp_llm.data.rows import Unusable, no_column, text_of

Take = Callable[[Any, str, int], Any]
"""A row, what its number counts ("line" or "row"), and that number -> what is read of it."""

LONGEST = 2**26
"""Characters of a line, a cell or a JSON value, which are read at once; Python's own limit of a
cell is 131,072."""

MARKED = "utf-8-sig"
"""UTF-8 that may begin with a byte order mark, which is no part of a table."""

PIECE = 2**20
"""Characters of plain text that are looked at together."""

NUMBERS = 1000
"""Cells of a .csv file, numbers without any text, after which its column is taken for numbers."""


def documents_in(file: Any, kind: str, column: str, characters: int) -> Iterator[str]:
    """The documents of a file that is open.

    Args:
        file: binary, as `open` gives it.
        kind: the suffix, without that of a compression.
        column: of a table that holds the text.
        characters: of a document of plain text; what is longer goes on in others.

    Raises:
        Unusable: damaged, binary, or something else than text in a row.
        UnicodeDecodeError: not UTF-8.
    """

    def take(row: Any, unit: str, number: int) -> str:
        return text_of(row, column, unit, number, strings=unit == "row")

    if kind == ".parquet":
        yield from _parquet(file, column)
    elif kind == ".csv":
        with io.TextIOWrapper(file, encoding=MARKED, newline="") as text:
            yield from _csv(_lines(text), column)
    elif kind in _JSON:
        yield from rows_in(file, kind, take)
    else:
        with io.TextIOWrapper(file, encoding="utf-8") as text:
            yield from _plain(text, characters)


def rows_in(file: Any, kind: str, take: Take) -> Iterator[Any]:
    """What is read of the rows of a JSON file that is open; of any kind but .json, one a line.

    Args:
        file: binary, as `open` gives it.
        kind: the suffix, without that of a compression.

    Raises:
        Unusable: damaged, binary, or what `take` refuses.
        UnicodeDecodeError: not UTF-8.
    """
    with io.TextIOWrapper(file, encoding=MARKED) as text:
        yield from _JSON.get(kind, _jsonl)(text, take)


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


def _jsonl(file: io.TextIOBase, take: Take) -> Iterator[Any]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Unusable(
                    f"has no JSON object in line {number}", "mend or delete that line"
                ) from error
            yield take(row, "line", number)


def _json(file: io.TextIOBase, take: Take) -> Iterator[Any]:
    content = "".join(_pieces(file, LONGEST + 1))
    if len(content) > LONGEST:
        what = f"has more than {LONGEST:,} characters, which are read at once"
        raise Unusable(what, "make a .jsonl file of it, an object a line")
    try:
        found = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            raise Unusable(f"is no whole JSON array ({said_by(error)})", "mend it") from error
        return _jsonl(io.StringIO(content), take)
    rows = found if isinstance(found, list) else [found]
    return (take(row, "row", number) for number, row in enumerate(rows, start=1))


_JSON: dict[str, Callable[[io.TextIOBase, Take], Iterator[Any]]] = {
    ".jsonl": _jsonl, ".json": _json,
}  # fmt: skip


def _csv(lines: Iterable[str], column: str) -> Iterator[str]:
    rows = csv.reader(lines, strict=True)
    line, numbers, has_text = 1, 0, False
    with _long_cells():
        try:
            header = next(rows, [])
            if header.count(column) != 1:
                raise Unusable(*no_column(column, header))
            place, line = header.index(column), rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    raise Unusable(
                        f"has {len(row)} cells in line {line} and {len(header)} columns",
                        "mend that line, or put texts with commas in quotes",
                    )
                if row:
                    has_text = has_text or not _is_number(row[place])
                    numbers += bool(row[place])
                    if numbers > NUMBERS and not has_text:
                        break
                    yield row[place]
                line = rows.line_num + 1
        except csv.Error as error:
            raise Unusable(
                f"has no whole row in line {line} ({said_by(error)})", "mend it"
            ) from error
    if numbers and not has_text:
        raise Unusable(f"has no text but numbers as '{column}'", "name the right `text_field`")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in ("", "true", "false")
    return True


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """While the context lasts, cells may be as long as documents are."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


BATCH, BUFFER = 32, 2**20
"""Rows of a .parquet file that are unpacked together, and bytes of it that are read at once."""


def _parquet(file: Any, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet

    seekable = file
    if not isinstance(file, io.BufferedReader):
        content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise Unusable(f"unpacks to more than {LONGEST:,} bytes", "unpack it first")
        seekable = io.BytesIO(content)
    numbers = itertools.count(1)
    try:
        table = pyarrow.parquet.ParquetFile(
            seekable, page_checksum_verification=True, buffer_size=BUFFER
        )
        columns = table.schema_arrow.names
        if columns.count(column) != 1:
            raise Unusable(*no_column(column, columns))
        for batch in table.iter_batches(BATCH, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield text_of({column: value}, column, "row", next(numbers))
    except pa.ArrowException as error:
        what = f"is no whole Parquet file ({said_by(error)})"
        raise Unusable(what, "make or fetch it again") from error
