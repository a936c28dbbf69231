"""What settings name, or a program hands over, as text -> documents and examples, before there are
tokens: files, folders, hub data sets, mixtures of them, the embedded speeches."""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, said_by
from disp_llm.config.names import NAMED_TEXTS, SELF, SPEECHES, is_mixture
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.examples import HELD_OUT, GivenExamples, read_examples
from disp_llm.data.given import GivenText
from disp_llm.data.reading import base_name, documents_of, read_each
from disp_llm.data.rows import Unusable, first_documents, no_column, text_of
from disp_llm.models.embedded import speech_files

DATASET = {"text": "dataset", "eval_text": "eval_dataset"}
"""The setting of a hub data set beside that of files."""

LEAST, EVERYTHING = 2**24, 2**30
"""Characters that are read of a source, where it has as many: however few tokens are wanted, and
where all of it is."""

A_TOKEN = 8
"""Characters that are read for each token that is wanted: few texts have more than 6, and a tenth
may be held out."""

OF_MIXTURE, LEAST_OF_MIXTURE = 5, 1_000_000
"""Characters that are read of a data set of a mixture: for each token, and at least, since windows
are to differ."""

Given = GivenText | GivenExamples
"""What is learned from or measured on."""


@dataclass(frozen=True)
class InMemory:
    """What a program handed over, in place of what the settings name."""

    text: GivenText | None = None
    eval_text: GivenText | None = None
    examples: GivenExamples | None = None
    eval_examples: GivenExamples | None = None


@dataclass(frozen=True)
class Needs:
    """How many tokens of synthetic text a task reads."""

    learning: int
    """Those that steps and calibration read; where time is the limit, the least of them."""
    held_out: int
    """Those that are only measured on."""
    seconds: float = 0.0
    """How long more of them are written than these; 0 = none are."""


def held_out(text: TextConfig, evaluation: PerplexityConfig, learning: int) -> int:
    """How many tokens of synthetic text are only measured on: those of the evaluation windows, or
    the usual share beside what is learned from; none where there is another text for it."""
    if text.has_evaluation:
        return 0
    return evaluation.tokens or math.ceil(learning * HELD_OUT / (1 - HELD_OUT))


@dataclass(frozen=True)
class Source:
    """One text, or examples, to learn from."""

    text: Given | None
    """None is what the model has still to write."""
    group: int = 0
    """Which of the texts that the settings name it is part of."""
    share: float = 1.0
    """How much of that one it is."""


@dataclass(frozen=True)
class Sources:
    """Text as it was found, before there are tokens."""

    learning: tuple[Source, ...]
    evaluation: Given | None
    """None = the end of the learning text."""

    @property
    def writes(self) -> bool:
        """Whether the model writes some of it."""
        return any(source.text is None for source in self.learning)


def read_sources(
    config: TextConfig,
    in_memory: InMemory = InMemory(),
    tokens: int = 0,
    measured: int = PerplexityConfig().tokens,
) -> Sources:
    """Reads the texts that the settings name, or takes those in memory.

    Args:
        tokens: how many are learned from, so that large texts are read no further.
        measured: how many are measured on; 0 = all of a text that is for it alone.
    """
    names = config.eval_text, config.eval_dataset
    examples = in_memory.examples or read_examples(config.examples, config.template)
    evaluation = (
        in_memory.eval_text
        or in_memory.eval_examples
        or read_given(*names, config.text_field, "test", "eval_text", characters_for(measured))
        or read_examples(config.eval_examples, config.template, "eval_examples")
    )
    if evaluation is None and examples is not None:
        examples, evaluation = examples.parted()
    texts: list[Source] = []
    if in_memory.text is not None:
        texts = [Source(in_memory.text)]
    elif config.learns_from_text or examples is None:
        held_out = 0 if evaluation else round(measured / HELD_OUT)
        texts = _learning_sources(config, tokens, characters_for(max(1, tokens, held_out)))
    if examples is not None:
        texts.append(Source(examples, 1 + max((source.group for source in texts), default=-1)))
    return Sources(tuple(texts), evaluation)


def characters_for(tokens: int) -> int:
    """How much is read of a source of which so many tokens are wanted; 0 = all of it is.

    In doublings, so that runs that want about as much read the same.
    """
    characters = LEAST if tokens else EVERYTHING
    while characters < A_TOKEN * tokens:
        characters *= 2
    return characters


def _learning_sources(config: TextConfig, tokens: int, characters: int) -> list[Source]:
    """The texts of every name; of those that are not mixtures, so many characters."""
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
    """The names that belong to each source: with weights each to its own, else all files to one."""
    names = config.learns_from
    if config.weights and names:
        return [(name,) for name in names]
    apart = [name for name in names if str(name) in NAMED_TEXTS or is_mixture(name)]
    files = tuple(name for name in names if name not in apart)
    others: list[tuple[Path, ...]] = [(name,) for name in apart]
    return [files, *others] if files or not others else others


def embedded_text() -> GivenText:
    """The embedded speeches."""
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
    """The text of a hub data set or of files; None where neither is named.

    Args:
        split: of a data set that names none.
        field: the setting that the files were named in.
        characters: after which reading ends, with a warning.
    """
    if dataset:
        return read_dataset(dataset, column, split, DATASET[field], characters)
    if not paths:
        return None
    for path in paths:
        if is_mixture(path) or (str(path) in (SELF, SPEECHES) and not path.exists()):
            what = f"{path} is only learned from"
            raise InputError(what, field=field, hint="name files or folders of text")
    named = ", ".join(map(base_name, paths))
    return GivenText(read_documents(paths, column, field, characters), field=field, named=named)


def read_documents(
    paths: Sequence[Path], column: str, field: str = "text", characters: int = EVERYTHING
) -> list[str]:
    """The documents of text files, and of those in folders, in order; arguments as above."""
    read = partial(documents_of, column=column, characters=characters)
    found = read_each(paths, field, read)
    return _beginning(found, characters, field, ", ".join(map(base_name, paths)))


def _beginning(documents: Iterable[str], characters: int, field: str, name: str) -> list[str]:
    """Documents of a source that hold so many characters; says if there are more."""
    found, are_all = first_documents(documents, characters)
    if not are_all:
        warnings.warn(
            f"{field}: the first {sum(map(len, found)):,} characters of {name} are read, enough "
            "for what is asked of them, and no more: shuffle documents that are sorted",
            stacklevel=3,
        )
    return found


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
    """The rows of a column of a hub data set NAME:CONFIG[:SPLIT].

    Args:
        revision: commit, tag or branch; "" = the newest.
        streams: fetches rows from the start, as many as are read, and keeps none.
        rows: most that are read; 0 = all.

    Raises:
        InputError: not found, not reachable, or something else than text in the column.
    """
    import datasets

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        found: Any = datasets.load_dataset(
            repository,
            config or None,
            split=split or default_split,
            revision=revision or None,
            streaming=streams,
        )
        if not streams:
            if column not in found.column_names:
                raise no_column(column, found.column_names)
            batches = found.select_columns([column]).iter(1000)
            found = ({column: value} for batch in batches for value in batch[column])
        numbered = enumerate(itertools.islice(found, rows or None), start=1)
        texts = (text_of(row, column, f"row {number}") for number, row in numbered)
        if streams:
            documents, _ = first_documents(texts, characters)
        else:
            documents = _beginning(texts, characters, field, dataset_name(name))
    except Unusable as error:
        raise InputError(f"{name} {error.what}", field=field, hint=error.hint) from error
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as e:
        raise InputError(
            f"cannot load {name} ({said_by(e.__cause__ or e)})",
            field=field,
            hint="check NAME:CONFIG:SPLIT, the network and that HF_HOME can be written, "
            "or name files",
        ) from e
    return GivenText(documents, field=field, named=dataset_name(name))


def dataset_name(name: str) -> str:
    """What results call a data set."""
    repository, colon, rest = name.partition(":")
    local = Path(repository)
    return f"{base_name(local)}{colon}{rest}" if local.exists() else name


def _read_mixture(path: Path, tokens: int, group: int) -> Iterator[Source]:
    """The texts of a mixture, of which so many tokens are learned from; of a data set, so many
    characters unless it says how many itself."""
    from disp_llm.config.texts import load_mixture, naming

    mixture = load_mixture(path)
    total = sum(text.weight for text in mixture.texts.values())
    for name, text in mixture.texts.items():
        share = text.weight / total
        wanted = tokens * share
        with naming(mixture, f"texts.{name}"):
            if text.files:
                characters = characters_for(max(1, round(wanted)))
                documents = read_documents(text.files, text.field, "text", characters)
                given = GivenText(documents, named=", ".join(map(base_name, text.files)))
            else:
                given = read_dataset(
                    text.dataset,
                    text.field,
                    "train",
                    "text",
                    text.characters or max(LEAST_OF_MIXTURE, round(OF_MIXTURE * wanted)),
                    revision=text.revision,
                    streams=True,
                )
        yield Source(given, group, share)
