"""A row of a table -> its text; what is no text is refused by its place, not learned as a word."""

from collections.abc import Iterable, Mapping
from typing import Any

LISTED = 8
"""Most columns that a message names."""


class Unusable(Exception):
    """What is wrong with a text and what to do, without the name of the file or setting."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


def text_of(row: Any, column: str, place: str) -> str:
    """The text of a row at a place such as "line 3": itself, or in a column.

    Raises:
        Unusable: there is no such column, or something else than text in it.
    """
    if not isinstance(row, Mapping | str):
        raise Unusable(
            f"has no text but {kind_of(row)} in {place}",
            f"give strings or rows with a column '{column}'",
        )
    if isinstance(row, Mapping) and column not in row:
        raise no_column(column, list(row), f" in {place}")
    value = row if isinstance(row, str) else row[column]
    if not isinstance(value, str):
        raise Unusable(
            f"has no text but {kind_of(value)} as '{column}' in {place}",
            "leave such rows out, or name the right `text_field`",
        )
    return whole_text(value, place)


def no_column(column: str, columns: list[Any], place: str = "") -> Unusable:
    """What is wrong with a table that does not have the column once."""
    if count := columns.count(column):
        return Unusable(f"has {count} columns '{column}'", "rename all but one of them")
    listed = ", ".join(f"'{name}'" for name in columns[:LISTED])
    more = ", …" if len(columns) > LISTED else ""
    has = f", but {listed}{more}" if columns else ""
    return Unusable(f"has no column '{column}'{place}{has}", "name the right `text_field`")


def kind_of(value: Any) -> str:
    """What people call a value of JSON, or its Python type."""
    names = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number",
        str: "a string", list: "a list", tuple: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


def whole_text(text: str, place: str) -> str:
    """The text, without halves of surrogate pairs, which JSON can escape and no tokenizer reads.

    Raises:
        Unusable: there is one.
    """
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(
            f"has half a character (a lone surrogate) in {place}", "mend or leave out that text"
        ) from error
    return text


def first_documents(documents: Iterable[str], characters: int) -> tuple[list[str], bool]:
    """Documents from the start, until they hold so many characters; and whether these are all."""
    found: list[str] = []
    read = 0
    for document in documents:
        if read >= characters:
            return found, False
        found.append(document)
        read += len(document)
    return found, True
