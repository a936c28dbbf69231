"""The files on this machine that a task reads, by the setting that names them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disp_llm.commands.api import EXAMPLES, LOCAL_NAMES, TEXTS
from disp_llm.config.errors import InputError
from disp_llm.config.names import SELF, SPEECHES, is_mixture
from disp_llm.config.schema import require_file
from disp_llm.data.reading import files_under, naming
from disp_llm.models import embedded
from disp_llm.models.files import files_of
from disp_llm.runs.folder import other_source
from disp_llm.runs.sums import sha256_of

Hashes = dict[str, dict[str, str]]
"""By the setting that names it, and by its path, SHA-256 of every file that was read."""


def input_hashes(config: Any) -> Hashes:
    """The files as they are now; a model or data set of the hub has none."""
    return {name: _hashed(files, name) for name, files in _input_files(config).items()}


def require_same_files(config: Any, before: Hashes, folder: Path) -> None:
    """Refuses a folder that was made of other files than those that the settings name now. What is
    gone altogether is nobody's change."""
    files = _input_files(config)
    for setting, had in before.items():
        now = _hashed(files.get(setting, []), setting)
        changed = sorted(name for name in now | had if now.get(name) != had.get(name))
        if now and changed:
            raise other_source(setting, folder, f"{Path(changed[0]).name} has changed")


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


def _input_files(config: Any) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in LOCAL_NAMES:
        value = getattr(config, name, "")
        path = embedded.model_file() if value == embedded.MODEL else Path(value)
        found[name] = files_of(path) if value else []
    for name in (*TEXTS, *EXAMPLES):
        paths = getattr(config.text, name)
        found[name] = [file for path in paths for file in _files_of_text(path, name)]
    suite = getattr(config, "suite", "")
    if suite.endswith(".toml"):
        found["suite"] = [Path(suite), *_files_of_suite(suite)]
    return {name: files for name, files in found.items() if files}


def _files_of_text(path: Path, field: str) -> Iterator[Path]:
    """A file of text, those of a folder, or a mixture with those that it names."""
    named = str(path) in (SELF, SPEECHES) and not path.exists()
    if named:
        yield from embedded.speech_files()[0] if str(path) == SPEECHES else ()
    elif is_mixture(path):
        if path.is_file():  # those that ship with the package change with its version
            yield path
        from disp_llm.config.texts import load_mixture

        for text in load_mixture(path).texts.values():
            for file in text.files:
                yield from _files_of_text(file, field)
    else:
        with naming(path, field):
            yield from files_under(path)


def _files_of_suite(name: str) -> Iterator[Path]:
    from disp_llm.config.texts import load_suite

    suite = load_suite(name)
    for file in (file for text in suite.texts.values() for file in text.files):
        yield from _files_of_text(file, "suite")
    yield from (task.data for task in suite.tasks.values() if task.data is not None)
