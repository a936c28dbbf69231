"""Files, folders, hub data sets, mixtures of them, embedded speeches, data in memory -> documents
and examples, not yet tokenised."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError, said_by
from disp_llm.config.names import NAMED_TEXTS, SELF, SPEECHES, is_mixture
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.examples import HELD_OUT, GivenExamples, read_examples
from disp_llm.data.reading import (
    Unusable,
    base_name,
    beginning,
    documents_of,
    read_each,
    text_of,
)
from disp_llm.models.embedded import speech_files

LEAST, EVERYTHING = 2**24, 2**30
"""Characters read from a source that has as many: the least, however few tokens are wanted, and
the most."""

A_TOKEN = 8
"""Characters read for each wanted token: few texts have more than 6 a token, and a tenth may be
held out."""

OF_MIXTURE, LEAST_OF_MIXTURE = 5, 1_000_000
"""Characters read from a data set of a mixture: for each wanted token, and the least, so that
windows differ."""


@dataclass(frozen=True)
class GivenText:
    """Text read from files or given in memory, identified by its content.

    Raises:
        InputError: the text is empty.
    """

    documents: list[str] | None = None
    tokens: Int[Tensor, " N"] | None = None
    """Token ids, in place of documents."""
    field: str = "text"
    """The setting that named it."""
    named: str = ""
    """Name of the files or the data set; "" if it was in memory."""
    held_out: int | None = None
    """Tokens at its end that are held out if there is no other evaluation text; None = the usual
    share."""

    def __post_init__(self) -> None:
        if self.tokens is None and not any(text.strip() for text in self.documents or ()):
            raise InputError("is empty", field=self.field, hint="give some text")
        if self.tokens is not None and not len(self.tokens):
            raise InputError("is empty", field=self.field, hint="give some token ids")

    @property
    def name(self) -> str:
        """Its name in results."""
        tokens, documents = self.tokens, self.documents or ()
        found = f"{len(documents):,} documents" if tokens is None else f"{len(tokens):,} token ids"
        return self.named or f"{found} in memory (sha256:{self.sha256[:12]})"

    @property
    def measured_name(self) -> str:
        """Its name in results as an evaluation text."""
        return self.name

    @cached_property
    def sha256(self) -> str:
        """Hash of the documents, each after its length in bytes (8 bytes, little-endian), or of the
        ids (8 bytes each, little-endian)."""
        digest = hashlib.sha256()
        for content in map(str.encode, self.documents or ()):
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        if self.tokens is not None:
            digest.update(self.tokens.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


Given = GivenText | GivenExamples
"""Data to learn from or to measure on."""


@dataclass(frozen=True)
class Needs:
    """Number of tokens of synthetic text that a task reads."""

    learning: int
    """Tokens for steps and calibration; a minimum if time is the limit."""
    held_out: int
    """Tokens for evaluation only."""
    seconds: float = 0.0
    """Writing goes on beyond these tokens until so many seconds have passed; 0 = it stops there."""


def held_out(text: TextConfig, evaluation: PerplexityConfig, learning: int) -> int:
    """Returns how many tokens of synthetic text are held out: those of the evaluation windows, or
    the usual share besides `learning` if windows are unlimited; 0 if other data is measured on."""
    if text.has_evaluation:
        return 0
    return evaluation.tokens or math.ceil(learning * HELD_OUT / (1 - HELD_OUT))


@dataclass(frozen=True)
class Source:
    """One text or set of examples to learn from."""

    text: Given | None
    """None if the model has yet to write it."""
    group: int = 0
    """Index of the text in the settings that it belongs to."""
    share: float = 1.0
    """Its share of that text."""


@dataclass(frozen=True)
class Sources:
    """Learning and evaluation data, not yet tokenised."""

    learning: tuple[Source, ...]
    evaluation: Given | None
    """None = the end of the learning text is held out."""

    @property
    def writes(self) -> bool:
        """True if the model writes some of the learning text."""
        return any(source.text is None for source in self.learning)


def read_sources(
    config: TextConfig,
    in_memory: Mapping[str, Any] | None = None,
    tokens: int = 0,
    measured: int = PerplexityConfig().tokens,
    measured_before: int = 0,
) -> Sources:
    """Reads the texts that the settings name, or takes those in memory.

    Args:
        in_memory: data from a program, by the setting that it replaces.
        tokens: number of tokens to learn from; large texts are read no further.
        measured: number of tokens to measure on; 0 = all of a separate evaluation text.
        measured_before: the same of earlier runs, which learned from all that they read before.
    """
    held = in_memory or {}
    names = config.eval_text, config.eval_dataset
    examples = held.get("examples") or named_examples(config, "examples")
    evaluation = (
        held.get("eval_text")
        or held.get("eval_examples")
        or read_given(*names, config.text_field, "test", "eval_text", characters_for(measured))
        or named_examples(config, "eval_examples")
    )
    if evaluation is None and examples is not None:
        examples, evaluation = examples.parted()
    texts: list[Source] = []
    if "text" in held:
        texts = [Source(held["text"])]
    elif config.learns_from_text or examples is None:
        last = 0 if evaluation else round(max(measured, measured_before) / HELD_OUT)
        texts = _learning_sources(config, tokens, characters_for(max(1, tokens, last)))
    if examples is not None:
        texts.append(Source(examples, 1 + max((source.group for source in texts), default=-1)))
    return Sources(tuple(texts), evaluation)


def named_examples(config: Any, field: str) -> GivenExamples | None:
    """Reads the examples of the files that a setting names; returns None if it names none."""
    paths = getattr(config, field)
    return read_examples(paths, config.template, field) if paths else None


def characters_for(tokens: int) -> int:
    """Returns how many characters to read from a source for so many tokens; 0 tokens = everything.

    Doubles from a minimum, so that runs with similar needs read the same text.
    """
    characters = LEAST if tokens else EVERYTHING
    while characters < A_TOKEN * tokens:
        characters *= 2
    return characters


def _learning_sources(config: TextConfig, tokens: int, characters: int) -> list[Source]:
    """Returns the sources of all named texts; reads so many characters of files or a data set."""
    found: list[Source] = []
    for group, paths in enumerate(_groups(config)):
        if len(paths) == 1 and is_mixture(paths[0]):
            found += _read_mixture(paths[0], tokens, group)
        elif paths == (Path(SELF),):
            found.append(Source(None, group))
        elif paths == (Path(SPEECHES),):
            found.append(Source(embedded_text(), group))
        else:
            names = paths, config.dataset, config.text_field
            found.append(Source(read_given(*names, "train", characters=characters), group))
    return found


def _groups(config: TextConfig) -> list[tuple[Path, ...]]:
    """Groups the names by source: with weights each is its own source, else all files are one."""
    names = config.learns_from
    if config.weights and names:
        return [(name,) for name in names]
    apart = [name for name in names if str(name) in NAMED_TEXTS or is_mixture(name)]
    files = tuple(name for name in names if name not in apart)
    others: list[tuple[Path, ...]] = [(name,) for name in apart]
    return [files, *others] if files or not others else others


def embedded_text() -> GivenText:
    """Reads the embedded speeches."""
    files, name = speech_files()
    return GivenText(read_documents(files, "text"), named=name)


def read_given(
    paths: Sequence[Path],
    dataset: str,
    column: str,
    split: str,
    field: str = "text",
    characters: int = EVERYTHING,
) -> GivenText | None:
    """Reads the text of a hub data set or of files; returns None if neither is named.

    Args:
        split: split to read if `dataset` names none.
        field: setting that named the files.
        characters: limit at which reading ends, with a warning.
    """
    if dataset:
        of_data_set = field.replace("text", "dataset")
        return read_dataset(dataset, column, split, of_data_set, characters)
    if not paths:
        return None
    for path in paths:
        if is_mixture(path) or (str(path) in (SELF, SPEECHES) and not path.exists()):
            what = f"{path} is only learned from"
            raise InputError(what, field=field, hint="name files or folders of text")
    return GivenText(
        read_documents(paths, column, field, characters), field=field, named=_names(paths)
    )


def read_documents(
    paths: Sequence[Path], column: str, field: str = "text", characters: int = EVERYTHING
) -> list[str]:
    """Reads the documents of files, and of files in folders, in order; arguments as above."""
    read = partial(documents_of, column=column, characters=characters)
    return beginning(read_each(paths, field, read), characters, field, _names(paths))


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(base_name, paths))


def read_dataset(
    name: str,
    column: str,
    default_split: str,
    field: str = "dataset",
    characters: int = EVERYTHING,
    *,
    revision: str = "",
    streams: bool = False,
    rows: int = 0,
) -> GivenText:
    """Reads a column of the hub data set NAME[:CONFIG[:SPLIT]], one document per row.

    Args:
        revision: commit, tag or branch; "" = the newest.
        streams: fetches only the rows that are read, and caches none.
        rows: most rows to read; 0 = all.

    Raises:
        InputError: the data set cannot be loaded, or the column holds something other than text.
    """
    import datasets

    repository, colon, rest = name.partition(":")
    config, _, split = rest.partition(":")
    local = Path(repository)
    named = f"{base_name(local)}{colon}{rest}" if local.exists() else name
    try:
        found: Any = datasets.load_dataset(
            repository,
            config or None,
            split=split or default_split,
            revision=revision or None,
            streaming=streams,
        )
        if not streams and column in found.column_names:
            batches = found.select_columns([column]).iter(1000)
            found = ({column: value} for batch in batches for value in batch[column])
        texts = texts_of(itertools.islice(found, rows or None), column)
        documents = beginning(texts, characters, field, "" if streams else named)
    except Unusable as error:
        raise InputError(f"{name} {error.what}", field=field, hint=error.hint) from error
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as e:
        raise InputError(
            f"cannot load {name} ({said_by(e.__cause__ or e)})",
            field=field,
            hint="check NAME:CONFIG:SPLIT, the network and that HF_HOME can be written, "
            "or name files",
        ) from e
    return GivenText(documents, field=field, named=named)


def texts_of(rows: Iterable[Any], column: str) -> Iterator[str]:
    """Yields the text in a column of each row."""
    return (text_of(row, column, f"row {number}") for number, row in enumerate(rows, start=1))


def _read_mixture(path: Path, tokens: int, group: int) -> Iterator[Source]:
    """Yields the texts of a mixture, each read far enough for its share of `tokens`; a data set may
    state its own number of characters."""
    from disp_llm.config.texts import at_place, load_mixture

    mixture = load_mixture(path)
    total = sum(text.weight for text in mixture.texts.values())
    for name, text in mixture.texts.items():
        share = text.weight / total
        with at_place(mixture, f"texts.{name}"):
            if text.files:
                characters = characters_for(max(1, round(tokens * share)))
                given = read_given(text.files, "", text.field, "", characters=characters)
            else:
                characters = max(LEAST_OF_MIXTURE, round(OF_MIXTURE * tokens * share))
                given = read_dataset(
                    text.dataset,
                    text.field,
                    "train",
                    "text",
                    text.characters or characters,
                    revision=text.revision,
                    streams=True,
                )
        yield Source(given, group, share)
