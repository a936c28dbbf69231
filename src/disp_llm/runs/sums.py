"""Hashes of files: what a folder held when it was written, in the form that `sha256sum` reads.

An exported folder carries `SHA256SUMS`: `sha256sum --check SHA256SUMS` tells, without this package,
whether it arrived whole. The sums reveal damage and mistakes; they are no signature.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic

SUMS = "SHA256SUMS"
"""Name of the file in an exported folder."""

THREADS = 4
"""Files that are hashed in parallel; hashing releases the interpreter lock."""


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: list[Path]) -> dict[Path, str]:
    """Returns the SHA-256 of several files."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def write_sums(folder: Path) -> None:
    """Writes the sums of all files of a folder into it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]
    sums = {path.relative_to(folder).as_posix(): sum for path, sum in sha256_of(files).items()}
    with atomic(folder / SUMS) as temporary:
        temporary.write_text(sums_text(sums), encoding="utf-8")


def sums_text(sums: dict[str, str]) -> str:
    """Returns one line per file, below the hash of all lines. `sha256sum` skips that head, which
    reveals a list that lost a line."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return f"{HEAD}{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}"


HEAD = "# disp-llm, sha256 of the lines below: "


def read_sums(folder: Path) -> dict[str, str]:
    """Returns hashes by file name; empty if the folder has no sums file, or an empty one."""
    path = folder / SUMS
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        head, _, lines = text.partition("\n")
        sums = dict(line.split("  ", 1)[::-1] for line in lines.splitlines())
        whole = f"{head}\n{lines}" in ("\n", sums_text(sums))
        if not whole or not all(map(_stays_inside, sums)):
            raise ValueError(head)
    except (OSError, ValueError) as error:
        raise InputError("is damaged", field=str(path), hint=CHANGED_FOLDER) from error
    return sums


CHANGED_FOLDER = "copy or export the folder again"
"""What to do about a model folder that has changed."""


def require_sums(folder: Path) -> dict[str, str]:
    """Returns hashes by file name; refuses a folder without them."""
    sums = read_sums(folder)
    if not sums:
        raise InputError(
            "is missing or empty, and nothing else tells what the folder held",
            field=str(folder / SUMS),
            hint=CHANGED_FOLDER,
        )
    return sums


def folder_problems(
    folder: Path, but: tuple[str, ...] = (), hint: str = CHANGED_FOLDER
) -> list[InputError]:
    """Returns errors for files, except `but`, that are missing or differ from a folder's sums."""
    sums = require_sums(folder)
    return changed_files(folder, {name: sums[name] for name in sums if name not in but}, hint)


def extra_files(folder: Path) -> list[str]:
    """Returns names of files and links in a folder that are not among its sums. Ignores hidden
    ones, which hubs and file managers add."""
    sums = {*read_sums(folder), SUMS}
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder) for path in found)
    shown = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return [name.as_posix() for name in shown if name.as_posix() not in sums]


def changed_files(folder: Path, sums: dict[str, str], hint: str) -> list[InputError]:
    """Returns errors, with this `hint`, for files that are missing or differ from their hash."""

    def problem(name: str) -> str:
        path = folder / name
        if not path.is_file():
            return "is missing"
        try:
            return "" if sha256(path) == sums[name] else "is not the file that was written"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(zip(sums, pool.map(problem, sums), strict=True))
    return [InputError(what, field=str(folder / at), hint=hint) for at, what in found if what]


def _stays_inside(name: str) -> bool:
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
