"""Hashes of files: what a folder held when it was written, in the form that `sha256sum` reads.

An exported folder carries `SHA256SUMS`, so that `sha256sum --check SHA256SUMS` tells, without this
package, whether it arrived whole. The sums tell damage and mistakes; they are no signature.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic

SUMS = "SHA256SUMS"
"""Name of the file in an exported folder."""

THREADS = 4
"""Files that are hashed side by side; hashing releases the interpreter."""


@dataclass(frozen=True)
class Problem:
    """Something about a file that is not as it was written."""

    file: str
    what: str
    hint: str

    @property
    def error(self) -> InputError:
        """The same as an error."""
        return InputError(self.what, field=self.file, hint=self.hint)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the content of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: list[Path]) -> dict[Path, str]:
    """The same of several files.

    Raises:
        OSError: one cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def write_sums(folder: Path) -> None:
    """Writes the sums of all files of a folder into it.

    Raises:
        InputError: the folder cannot be written.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]
    sums = sha256_of(files)
    with atomic(folder / SUMS) as temporary:
        lines = (f"{sums[path]}  {path.relative_to(folder).as_posix()}\n" for path in files)
        temporary.write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Hashes by name of file; empty where a folder has none.

    Raises:
        InputError: the file is damaged.
    """
    path, sums = folder / SUMS, {}
    if not path.exists():
        return {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, name = line.split("  ", 1)
            if len(bytes.fromhex(digest)) != 32 or not _stays_inside(name):
                raise ValueError(line)
            sums[name] = digest
    except (OSError, ValueError) as error:
        raise InputError("is damaged", field=str(path), hint=CHANGED_FOLDER) from error
    return sums


CHANGED_FOLDER = (
    "copy or export the folder again, or delete its SHA256SUMS if you changed it on purpose"
)


def folder_problems(folder: Path, but: tuple[str, ...] = ()) -> list[Problem]:
    """Files of a folder that are missing or not as its sums say; none where it has no sums.

    Args:
        but: names that do not matter here.

    Raises:
        InputError: the sums themselves are damaged.
    """
    sums = {name: digest for name, digest in read_sums(folder).items() if name not in but}
    return changed_files(folder, sums, CHANGED_FOLDER)


def changed_files(folder: Path, sums: dict[str, str], hint: str) -> list[Problem]:
    """Files that are missing or differ from their hash.

    Args:
        sums: hashes by name of file in the folder.
        hint: what to do about a file that does not agree.
    """
    problems, there = [], []
    for name in sums:
        if (folder / name).is_file():
            there.append(folder / name)
        else:
            problems.append(Problem(str(folder / name), "is missing", hint))
    try:
        found = sha256_of(there)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        return [*problems, Problem(str(error.filename or folder), what, hint)]
    return problems + [
        Problem(str(path), "is not the file that was written", hint)
        for path, digest in found.items()
        if digest != sums[path.relative_to(folder).as_posix()]
    ]


def _stays_inside(name: str) -> bool:
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
