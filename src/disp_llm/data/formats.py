"""The content of one file -> its documents, by the kind that its suffix names.

    .jsonl      one object a line
    .json       an array of objects or of strings; one object; or one object a line
    .csv        comma-separated, the columns named in the first line
    .parquet    rows
    any other   plain text: one document

JSON and CSV are read here, for the numbers of their lines; none of the readers writes to a cache.
"""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from disp_llm.config.errors import said_by
from disp_llm.data.rows import Unusable, no_column, text_of

Take = Callable[[Any, str, int], Any]
"""A row, what its number counts ("line" or "row"), and that number -> what is read of it."""

LONGEST_CELL = 2**31 - 1
"""Characters of a cell of a .csv file; Python's own limit is 131,072."""


def documents_in(file: Any, kind: str, column: str) -> list[str]:
    """The documents of a file that is open.

    Args:
        file: binary, as `open` gives it.
        kind: the suffix, without that of a compression.
        column: of a table that holds the text.

    Raises:
        Unusable: damaged, binary, or something else than text in a row.
        UnicodeDecodeError: not UTF-8.
    """
    if kind == ".parquet":
        return _parquet(file, column)
    content = _decoded(file)
    if kind == ".csv":
        return _csv(content.removeprefix("\ufeff"), column)
    content = _with_plain_ends(content)
    reader = _JSON.get(kind)
    if reader is None:
        return [content]

    def take(row: Any, unit: str, number: int) -> str:
        return text_of(row, column, unit, number, strings=unit == "row")

    return reader(content.removeprefix("\ufeff"), take)


def rows_in(file: Any, kind: str, take: Take) -> list[Any]:
    """What is read of the rows of a JSON file that is open; of any kind but .json, one a line.

    Args:
        file: binary, as `open` gives it.
        kind: the suffix, without that of a compression.

    Raises:
        Unusable: damaged, binary, or what `take` refuses.
        UnicodeDecodeError: not UTF-8.
    """
    content = _with_plain_ends(_decoded(file)).removeprefix("\ufeff")
    return _JSON.get(kind, _jsonl)(content, take)


def _decoded(file: Any) -> str:
    content = file.read().decode("utf-8")
    if "\0" in content:
        raise Unusable("is binary, not text", "name a text file")
    return content


def _with_plain_ends(content: str) -> str:
    """Its lines end as Python reads them."""
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(content: str, take: Take) -> list[Any]:
    found = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Unusable(
                    f"has no JSON object in line {number}", "mend or delete that line"
                ) from error
            found.append(take(row, "line", number))
    return found


def _json(content: str, take: Take) -> list[Any]:
    try:
        found = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            raise Unusable(f"is no whole JSON array ({said_by(error)})", "mend it") from error
        return _jsonl(content, take)
    rows = found if isinstance(found, list) else [found]
    return [take(row, "row", number) for number, row in enumerate(rows, start=1)]


_JSON: dict[str, Callable[[str, Take], list[Any]]] = {".jsonl": _jsonl, ".json": _json}


def _csv(content: str, column: str) -> list[str]:
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    line, documents = 1, []
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
                    documents.append(row[place])
                line = rows.line_num + 1
        except csv.Error as error:
            raise Unusable(
                f"has no whole row in line {line} ({said_by(error)})", "mend it"
            ) from error
    if any(documents) and all(_is_number(document) for document in documents):
        raise Unusable(f"has no text but numbers as '{column}'", "name the right `text_field`")
    return documents


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in ("", "true", "false")
    return True


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """While the context lasts, cells may be as long as documents are."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(file: Any, column: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet

    seekable = file if isinstance(file, io.BufferedReader) else io.BytesIO(file.read())
    documents: list[str] = []
    try:
        table = pyarrow.parquet.ParquetFile(seekable, page_checksum_verification=True)
        columns = table.schema_arrow.names
        if columns.count(column) != 1:
            raise Unusable(*no_column(column, columns))
        for batch in table.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                row, number = {column: value}, len(documents) + 1
                documents.append(text_of(row, column, "row", number))
    except pa.ArrowException as error:
        what = f"is no whole Parquet file ({said_by(error)})"
        raise Unusable(what, "make or fetch it again") from error
    return documents
