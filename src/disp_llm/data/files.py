"""Paths -> files of text that are open, decompressed; a folder -> the files in it."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disp_llm.config.errors import said_by
from disp_llm.config.schema import require_file
from disp_llm.data.formats import Take, documents_in, rows_in
from disp_llm.data.rows import Unusable

KINDS = (".txt", ".raw", ".md", ".jsonl", ".json", ".csv", ".parquet")
"""What a folder may hold. A file that is named itself may have any suffix."""


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip
"""Suffixes behind that of the kind, as in notes.txt.gz, and what opens such a file."""


def kind_of_file(path: Path) -> tuple[str, str]:
    """The suffix that says what a file holds, and that of its compression; "" = none."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), suffix
    return suffix, ""


def documents_of(path: Path, column: str, characters: int) -> Iterator[str]:
    """The documents of a file.

    Args:
        characters: of a document of plain text; what is longer goes on in others.

    Raises:
        Unusable: no text, damaged, or empty.
        OSError, UnicodeDecodeError: not readable, not UTF-8.
    """
    empty = True
    for document in _read(path, lambda file, kind: documents_in(file, kind, column, characters)):
        empty = empty and (not document or document.isspace())
        yield document
    if empty:
        raise _empty()


def rows_of(path: Path, take: Take) -> list[Any]:
    """What is read of the rows of a JSON file: one a line, or of a .json file an array.

    Raises:
        Unusable: damaged, empty, or what `take` refuses.
        OSError, UnicodeDecodeError: not readable, not UTF-8.
    """
    rows = list(_read(path, lambda file, kind: rows_in(file, kind, take)))
    if not rows:
        raise _empty()
    return rows


def _read(path: Path, reader: Callable[[Any, str], Iterator[Any]]) -> Iterator[Any]:
    """What a reader makes of a file, which is given open and decompressed, with its kind."""
    kind, compression = kind_of_file(path)
    opener: Callable[[Path], Any] = COMPRESSIONS.get(compression, _open_plain)
    require_file(path)
    if path.is_file() and not path.stat().st_size:
        raise _empty()
    try:
        with opener(path) as file:
            yield from reader(file, kind)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise Unusable(f"is damaged ({said_by(error)})", "make or fetch it again") from error
    except OSError as error:
        if error.errno is None:  # of a decompressor, not of the system
            raise Unusable(f"is damaged ({said_by(error)})", "make or fetch it again") from error
        raise


def _empty() -> Unusable:
    return Unusable("is empty", "leave it out, or make it again")


def _open_plain(path: Path) -> Any:
    return path.open("rb")


def files_under(path: Path) -> list[Path]:
    """The file itself, or the files of a folder and the folders in it, in order of their names.

    Hidden files are left out.

    Raises:
        Unusable: a folder without a file, or with one of a kind that is not known.
    """
    if not path.is_dir():
        return [path]
    files = _files_in(path, (path.resolve(),))
    if not files:
        raise Unusable("holds no files", "name a folder of text files")
    for file in files:
        if kind_of_file(file)[0] not in KINDS or not file.is_file():
            raise Unusable(
                f"holds {file.relative_to(path)}, which is none of {' '.join(KINDS)}",
                "move it elsewhere, or name the files that are meant",
            )
    return files


def _files_in(folder: Path, above: tuple[Path, ...]) -> list[Path]:
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() in above:
                raise Unusable(f"holds {path.name}, a link to a folder above it", "remove the link")
            files += _files_in(path, (*above, path.resolve()))
        else:
            files.append(path)
    return files
