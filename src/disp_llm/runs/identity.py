"""The files that the settings of a task name, known again by their hashes."""

from pathlib import Path

from disp_llm.config.errors import InputError
from disp_llm.config.schema import require_file
from disp_llm.runs.sums import sha256_of

Files = dict[str, list[Path]]
"""By the setting that names them."""

Hashes = dict[str, dict[str, str]]
"""By the setting that names it, and by its path, SHA-256 of every file that was read."""


def hashes_of(files: Files) -> Hashes:
    """The files as they are now."""
    return {setting: _hashed(paths, setting) for setting, paths in files.items()}


def _hashed(paths: list[Path], setting: str) -> dict[str, str]:
    path = Path()
    try:
        for path in paths:
            require_file(path)  # hashing a pipe would wait for ever
        return {str(path): digest for path, digest in sha256_of(paths).items()}
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror}",
            field=setting,
            hint="name a readable file",
        ) from error


def require_unchanged(before: Hashes, files: Files, folder: Path) -> None:
    """Refuses to go on in a folder that was made of other files than are named now. What is gone
    altogether is nobody's change.

    Raises:
        InputError: naming the setting and the file.
    """
    for setting, had in before.items():
        now = _hashed(files.get(setting, []), setting)
        changed = sorted(name for name in now | had if now.get(name) != had.get(name))
        if now and changed:
            raise InputError(
                f"is not what {folder} was made of ({Path(changed[0]).name} has changed)",
                field=setting,
                hint="bring back what it was, or begin in a new `output_dir`; "
                "`anyway` goes on all the same",
            )
