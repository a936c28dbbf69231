"""The files on this machine that a task reads, by the setting that names them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disp_llm.commands.api import EXAMPLES, LOCAL_NAMES, TEXTS
from disp_llm.config.names import SELF, SPEECHES, is_mixture
from disp_llm.config.suites import load_suite
from disp_llm.config.texts import load_mixture
from disp_llm.data.reading import files_under, naming
from disp_llm.models import embedded
from disp_llm.models.files import files_of
from disp_llm.runs.folder import Run
from disp_llm.runs.identity import Files, require_unchanged


def input_files(config: Any) -> Files:
    """All of them; a model or data set of the hub has none.

    Args:
        config: settings of a task that reads text.
    """
    found: Files = {}
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


def require_same_files(config: Any, run: Run) -> None:
    """Refuses a run that was made of other files than those that its settings name now."""
    figures = run.figures
    if figures and figures.inputs and not run.anyway:
        require_unchanged(figures.inputs, input_files(config), run.folder)


def _files_of_text(path: Path, field: str) -> Iterator[Path]:
    """A file of text, those of a folder, or a mixture with those that it names."""
    named = str(path) in (SELF, SPEECHES) and not path.exists()
    if named:
        yield from embedded.speech_files()[0] if str(path) == SPEECHES else ()
    elif is_mixture(path):
        if path.is_file():  # those that ship with the package change with its version
            yield path
        for text in load_mixture(path).texts.values():
            for file in text.files:
                yield from _files_of_text(file, field)
    else:
        with naming(path, field):
            yield from files_under(path)


def _files_of_suite(name: str) -> Iterator[Path]:
    suite = load_suite(name)
    for file in (file for text in suite.texts.values() for file in text.files):
        yield from _files_of_text(file, "suite")
    yield from (task.data for task in suite.tasks.values() if task.data is not None)
