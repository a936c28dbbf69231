"""Suites: which texts and tasks a model is measured on, as a TOML file names them."""

import contextlib
import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from disp_llm.config.bounds import AnyTokens, Number, ShareBelowOne, Window
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.parts import PerplexityConfig
from disp_llm.config.schema import Name, as_known, read_toml, with_files


@dataclass(frozen=True)
class SuiteText:
    """A text of a suite: files, or a data set of the hub."""

    files: tuple[Path, ...] = ()
    """Files or folders, as `--text` reads them."""
    dataset: str = ""
    """NAME:CONFIG:SPLIT (default split: test)."""
    field: Name = "text"
    """Key or column that holds the text."""
    rows: AnyTokens = 0
    """Rows of the data set from its start, so that a large one is not fetched whole; 0 = all."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            raise ValueError("name either files or a dataset")
        if self.rows and not self.dataset:
            raise ValueError("rows are those of a dataset")


@dataclass(frozen=True)
class SuiteTask:
    """A task of lm-evaluation-harness, or a group of them, whose answers are right or wrong."""

    chance: ShareBelowOne
    """Accuracy of who guesses."""
    metric: Literal["acc", "acc_norm"] = "acc_norm"
    data: Path | None = None
    """A JSON-lines file in the task's own format, in place of its hub data set."""
    limit: AnyTokens = 0
    """Number of questions, in a group of each of its tasks; 0 = all."""
    shots: Number | None = None
    """Solved questions in front of each; None = as many as the task says itself."""


@dataclass(frozen=True)
class Suite:
    """Texts, tasks and examples, by their names."""

    title: str = ""
    context: Window = 1024
    """Tokens of a window, as `--context`."""
    windows: Number = 16
    """Number of windows of each text, as `--windows`."""
    texts: dict[Name, SuiteText] = field(default_factory=dict)
    tasks: dict[Name, SuiteTask] = field(default_factory=dict)
    file: str = ""
    """Where it was read from, for messages."""

    @property
    def name(self) -> str:
        """What results call it: the name of its file without `.toml`."""
        return Path(self.file).stem

    @property
    def evaluation(self) -> PerplexityConfig:
        """How the texts are read."""
        return PerplexityConfig(self.context, self.windows)

    @contextlib.contextmanager
    def naming(self, place: str) -> Iterator[None]:
        """Says of an error that it is one of a place in this suite, such as `texts.C4`."""
        try:
            yield
        except InputError as error:
            what = f"{place}: {error.what}"
            raise InputError(what, field=self.file, hint=error.hint) from error


def suite_names() -> list[str]:
    """The suites that ship with the package."""
    return sorted(entry.name[:-5] for entry in _shipped().iterdir())


def _shipped() -> Any:
    return resources.files("disp_llm.config") / "shipped" / "suites"


def load_suite(name: str) -> Suite:
    """A shipped suite, or that of a TOML file: checked, its files there.

    Raises:
        InputError: no such suite.
    """
    if name.endswith(".toml"):
        return _checked(read_toml(Path(name), "suite", "correct the file"), name)
    if name in suite_names():
        file = f"{name}.toml"
        return _checked(tomllib.loads((_shipped() / file).read_text(encoding="utf-8")), file)
    raise InputError(
        f"no suite '{name}'" + nearest(name, suite_names()),
        field="suite",
        hint=f"use {', '.join(suite_names())}, or a file that ends in .toml",
    )


def _checked(tables: dict[str, Any], file: str) -> Suite:
    suite = as_known(tables, Suite, file)
    if not suite.texts and not suite.tasks:
        raise InputError("names no texts and no tasks", field=file, hint="add some")
    return dataclasses.replace(
        suite,
        texts=with_files(suite.texts, "texts", file),
        tasks=with_files(suite.tasks, "tasks", file),
    )
