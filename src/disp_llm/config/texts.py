"""TOML files that name texts: mixtures to learn from (`--text general`), and suites of texts and
tasks to measure a model on."""

import contextlib
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from disp_llm.config.bounds import AnyTokens, Number, Sequences, ShareBelowOne, Weight, Window, Word
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import GENERAL
from disp_llm.config.parts import PerplexityConfig
from disp_llm.config.recipes import SHIPPED
from disp_llm.config.schema import as_type, read_toml, require_known


@dataclass(frozen=True)
class NamedText:
    """Files, or a data set of the hub."""

    files: tuple[Path, ...] = ()
    """Files or folders, as `--text` reads them."""
    dataset: str = ""
    """NAME:CONFIG:SPLIT. The default split is train of a mixture, test of a suite."""
    field: Word = "text"
    """Key or column that holds the text."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            raise ValueError("name either files or a dataset")


@dataclass(frozen=True)
class MixedText(NamedText):
    """One text of a mixture."""

    revision: str = ""
    """Commit, tag or branch of the data set; "" = the newest."""
    weight: Weight = 1.0
    """How often a window is drawn from it, relative to the others."""
    characters: AnyTokens = 0
    """Characters that are read from the start of the data set, whole rows of it; 0 = as many as the
    steps need."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.revision or self.characters) and not self.dataset:
            raise ValueError("revision and characters are those of a dataset")


@dataclass(frozen=True)
class MixtureFile:
    """Texts by their names."""

    title: str = ""
    texts: dict[Word, MixedText] = field(default_factory=dict)
    file: str = ""
    """Where it was read from, for messages."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("names no texts")


@dataclass(frozen=True)
class SuiteText(NamedText):
    """A text of a suite."""

    rows: AnyTokens = 0
    """Rows of the data set from its start, so that a large one is not fetched whole; 0 = all."""
    origin: str = ""
    """Where others get it."""
    sha256: str = ""
    """Of its one file; another one is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows and not self.dataset:
            raise ValueError("rows are those of a dataset")
        if self.sha256 and len(self.files) != 1:
            raise ValueError("sha256 is that of one file")


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
    """Texts and tasks by their names."""

    title: str = ""
    context: Window = 1024
    """Tokens of a window, as `--context`."""
    windows: Number = 16
    """Number of windows of each text, as `--windows`."""
    every: Sequences = 1
    """Measures every n-th window: windows that do not follow one another differ more, and the error
    takes them for independent."""
    texts: dict[Word, SuiteText] = field(default_factory=dict)
    tasks: dict[Word, SuiteTask] = field(default_factory=dict)
    file: str = ""
    """Where it was read from, for messages."""

    def __post_init__(self) -> None:
        if not self.texts and not self.tasks:
            raise ValueError("names no texts and no tasks")

    @property
    def name(self) -> str:
        """What results call it: the name of its file without `.toml`."""
        return Path(self.file).stem

    @property
    def evaluation(self) -> PerplexityConfig:
        """How the texts are read, before windows are left out."""
        return PerplexityConfig(self.context, self.windows * self.every)


Named = TypeVar("Named", MixtureFile, Suite)


@contextlib.contextmanager
def at_place(of: MixtureFile | Suite, place: str) -> Iterator[None]:
    """Says of an error that it is one of a place in this file, such as `texts.C4`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error.what}", field=of.file, hint=error.hint) from error


def suite_names() -> list[str]:
    """The suites that ship with the package."""
    return sorted(path.stem for path in (SHIPPED / "suites").iterdir())


def load_suite(name: str) -> Suite:
    """A shipped suite, or that of a TOML file: checked, its files there.

    Raises:
        InputError: no such suite.
    """
    if name.endswith(".toml"):
        return _read(Path(name), Suite, name, "suite")
    if name in suite_names():
        return _read(SHIPPED / "suites" / f"{name}.toml", Suite, f"{name}.toml", "suite")
    raise InputError(
        f"no suite '{name}'" + nearest(name, suite_names()),
        field="suite",
        hint=f"use {', '.join(suite_names())}, or a file that ends in .toml",
    )


def load_mixture(path: Path) -> MixtureFile:
    """The shipped mixture or that of a TOML file: checked, its files there."""
    if str(path) == GENERAL:
        return _read(SHIPPED / "texts" / f"{GENERAL}.toml", MixtureFile, f"{GENERAL}.toml", "text")
    return _read(path, MixtureFile, str(path), "text")


def _read(path: Path, kind: type[Named], file: str, field: str) -> Named:
    tables = read_toml(path, field, "correct the file")
    require_known(tables, kind, file)
    to_path = partial(_found, path.parent)
    return as_type(tables | {"file": file}, kind, field=file, hint="correct it", to_path=to_path)


def _found(folder: Path, kind: type, named: Any) -> Path:
    """Where a file lies that a TOML file in this folder names: environment variables are put in,
    which no message says.

    Raises:
        ValueError: there is none, or a variable is not set.
    """
    if not isinstance(named, str):
        raise ValueError(f"expected a path, got {type(named).__name__}")
    try:
        path = folder / string.Template(named).substitute(os.environ)
    except KeyError as error:
        raise ValueError(f"the environment variable {error.args[0]} is not set") from error
    if not os.path.exists(path):
        raise ValueError(f"there is no {named}")
    return path
