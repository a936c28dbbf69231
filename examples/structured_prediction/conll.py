"""CoNLL files of named entities: a word and its tag a line, sentences apart by an empty line.

Tags are O, B-type and I-type; other columns between word and tag are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from disp_llm.config.errors import InputError


@dataclass(frozen=True, order=True)
class Span:
    """An entity: words from `start` to before `end`."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Sentence:
    """Words with the entities in them, which may lie within each other."""

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    place: str
    """File and line where it begins, for messages."""


def read_conll(path: Path, labels: Iterable[str] | None = None) -> list[Sentence]:
    """The sentences of a file.

    Args:
        labels: types that are known; None = all are.

    Raises:
        InputError: not readable or no such file, a line without a tag, a tag that is none or goes
            on with no entity of its type, or a type that is not known; naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read ({error})", field=str(path), hint="name a file"
        ) from error
    known = None if labels is None else set(labels)
    found = [_sentence(path, first, rows, known) for first, rows in _blocks(lines)]
    if not found:
        raise InputError("holds no sentences", field=str(path), hint="name another file")
    return found


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """Number of the first line of every sentence, and its columns."""
    rows: list[list[str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            rows.append(line.split("\t") if "\t" in line else line.split())
        elif rows:
            yield number - len(rows), rows
            rows = []


def _sentence(path: Path, first: int, rows: list[list[str]], known: set[str] | None) -> Sentence:
    words, spans = [], []
    begun, label = 0, ""
    for i, row in enumerate([*rows, ["", "O"]]):
        place = f"{path}, line {first + i}"
        if len(row) < 2:
            raise InputError("has a word without a tag", field=place, hint="mend that line")
        word, tag = row[0], row[-1].strip()
        kind, _, of = tag.partition("-")
        if kind not in ("O", "B", "I") or (kind != "O") != bool(of):
            raise InputError(f"has the tag '{tag}'", field=place, hint="use O, B-type and I-type")
        if kind == "I" and of != label:
            what = f"goes on with '{of}', which was not begun"
            raise InputError(what, field=place, hint=f"begin it with B-{of}")
        if known is not None and of and of not in known:
            hint = f"use one of {', '.join(sorted(known))}"
            raise InputError(f"has the type '{of}', which was not learned", field=place, hint=hint)
        if label and kind != "I":
            spans.append(Span(begun, i, label))
        begun, label = (i, of) if kind == "B" else (begun, label if kind == "I" else "")
        words.append(word)
    return Sentence(tuple(words[:-1]), tuple(spans), f"{path}, line {first}")
