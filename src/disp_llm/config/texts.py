"""Mixtures of text to learn from, as a TOML file names them: `--text general`, or a file of one's
own."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from disp_llm.config.bounds import AnyTokens, Weight
from disp_llm.config.errors import InputError
from disp_llm.config.names import GENERAL
from disp_llm.config.schema import Name, as_known, read_toml, with_files


@dataclass(frozen=True)
class MixedText:
    """One text of a mixture: files, or a data set of the hub."""

    files: tuple[Path, ...] = ()
    """Files or folders, as `--text` reads them."""
    dataset: str = ""
    """NAME:CONFIG:SPLIT (default split: train)."""
    revision: str = ""
    """Commit, tag or branch of the data set; "" = the newest."""
    field: Name = "text"
    """Key or column that holds the text."""
    weight: Weight = 1.0
    """How often a window is drawn from it, relative to the others."""
    characters: AnyTokens = 0
    """Characters that are read from the start of the data set, whole rows of it; 0 = as many as the
    steps need."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            raise ValueError("name either files or a dataset")
        if (self.revision or self.characters) and not self.dataset:
            raise ValueError("revision and characters are those of a dataset")


@dataclass(frozen=True)
class MixtureFile:
    """Texts by their names."""

    title: str = ""
    texts: dict[Name, MixedText] = field(default_factory=dict)
    file: str = ""
    """Where it was read from, for messages."""


def load_mixture(path: Path) -> MixtureFile:
    """The shipped mixture or that of a TOML file: checked, its files there."""
    if str(path) != GENERAL:
        return _checked(read_toml(path, "text", "correct the file"), str(path))
    file = f"{GENERAL}.toml"
    shipped = resources.files("disp_llm.config") / "shipped" / "texts" / file
    return _checked(tomllib.loads(shipped.read_text(encoding="utf-8")), file)


def _checked(tables: dict[str, Any], file: str) -> MixtureFile:
    found = as_known(tables, MixtureFile, file)
    if not found.texts:
        raise InputError("names no texts", field=file, hint="add some")
    return dataclasses.replace(found, texts=with_files(found.texts, "texts", file))
