"""Files, folders and hub data sets -> documents."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, said_by
from disp_llm.config.names import SELF, SPEECHES, is_mixture
from disp_llm.config.texts import MixedText, MixtureFile
from disp_llm.data.files import documents_of, files_under
from disp_llm.data.rows import Unusable, first_documents, no_column, text_of
from disp_llm.data.sources import GivenText

DATASET = {"text": "dataset", "eval_text": "eval_dataset"}
"""The setting of a hub data set beside that of files."""


LEAST, EVERYTHING = 2**24, 2**30
"""Characters that are read of a source, where it has as many: however few tokens are wanted, and
where all of it is."""

A_TOKEN = 8
"""Characters that are read for each token that is wanted: few texts have more than 6, and a tenth
may be held out."""


def characters_for(tokens: int) -> int:
    """How much is read of a source of which so many tokens are wanted; 0 = all of it is.

    In doublings, so that runs that want about as much read the same.
    """
    characters = LEAST if tokens else EVERYTHING
    while characters < A_TOKEN * tokens:
        characters *= 2
    return characters


def read_documents(
    paths: Sequence[Path], column: str, field: str = "text", characters: int = EVERYTHING
) -> list[str]:
    """The documents of text files, and of those in folders, in order.

    Args:
        column: of a table (.jsonl, .json, .csv, .parquet) that holds the text.
        field: the setting that the files were named in, for messages.
        characters: after which reading ends, with a warning; plain text is cut there.

    Raises:
        InputError: a file is missing, damaged, empty, not text, or lacks the column; a folder
            holds something else.
    """

    def found() -> Iterator[str]:
        for path in paths:
            with naming(path, field):
                files = files_under(path)
            for file in files:
                with naming(file, field):
                    yield from documents_of(file, column, characters)

    return _beginning(found(), characters, field, ", ".join(map(base_name, paths)))


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


@contextlib.contextmanager
def naming(path: Path, field: str) -> Iterator[None]:
    """Says of which file of which setting an error is."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", field=field, hint="name a readable file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", field=field, hint="name a text file, or convert it"
        ) from error
    except Unusable as error:
        raise InputError(f"{path} {error.what}", field=field, hint=error.hint) from error


def read_dataset(
    name: str,
    column: str,
    default_split: str,
    field: str = "dataset",
    most: int = 0,
    characters: int = 0,
    revision: str = "",
    enough: int = EVERYTHING,
) -> list[str]:
    """The rows of a column of a hub data set NAME:CONFIG[:SPLIT].

    Args:
        most: that many rows from the start, without fetching the others; 0 = all.
        characters: as many rows from the start as hold so many, without fetching the others; 0 =
            all.
        revision: commit, tag or branch; "" = the newest.
        enough: characters after which reading ends, with a warning.

    Raises:
        InputError: not found, not reachable, without the column, or with something else than text
            in it.
    """
    import datasets

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows: Any = datasets.load_dataset(
            repository,
            config or None,
            split=split or default_split,
            revision=revision or None,
            streaming=most + characters > 0,
        )
        if most:
            rows = datasets.Dataset.from_list(list(rows.take(most)))
        if characters:
            texts = (text_of(row, column, "row", i) for i, row in enumerate(rows, start=1))
            return first_documents(texts, characters)[0]
        if column not in rows.column_names:
            raise Unusable(*no_column(column, rows.column_names))
        batches = rows.select_columns([column]).iter(1000)
        values = (value for batch in batches for value in batch[column])
        texts = (text_of({column: v}, column, "row", i) for i, v in enumerate(values, start=1))
        return _beginning(texts, enough, field, dataset_name(name))
    except Unusable as error:
        raise InputError(f"{name} {error.what}", field=field, hint=error.hint) from error
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as e:
        raise InputError(
            f"cannot load {name} ({said_by(e.__cause__ or e)})",
            field=field,
            hint="check NAME:CONFIG:SPLIT, the network and that HF_HOME can be written, "
            "or name files",
        ) from e


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
        field: the setting of the files.
        characters: after which reading ends, with a warning.

    Raises:
        InputError: a file or the data set is unusable.
    """
    if dataset:
        documents = read_dataset(dataset, column, split, DATASET[field], enough=characters)
        return GivenText(documents, field=DATASET[field], named=dataset_name(dataset))
    if paths:
        for path in filter(is_mixture, paths):
            raise InputError(
                f"{path} is a mixture, which is only learned from",
                field=field,
                hint="name files or folders of text",
            )
        for path in paths:
            if str(path) in (SELF, SPEECHES) and not path.exists():
                usual = field == "text" and str(path) == SPEECHES
                raise InputError(
                    f"{path} is only learned from",
                    field=field,
                    hint=f"{'leave it out, for their last tenth, or ' if usual else ''}"
                    "name files or folders of text",
                )
        named = ", ".join(base_name(path) for path in paths)
        documents = read_documents(paths, column, field, characters)
        return GivenText(documents, field=field, named=named)
    return None


CHARACTERS_A_TOKEN = 5
"""More than most texts have, so that there are enough."""

LEAST_CHARACTERS = 1_000_000
"""Of a data set of a mixture, however few tokens are learned from: windows are to differ."""


def read_mixture(mixture: MixtureFile, tokens: int) -> list[tuple[GivenText, float]]:
    """The texts of a mixture, each with its share.

    Args:
        tokens: how many are learned from, all texts together.

    Raises:
        InputError: a file or data set is unusable.
    """
    total = sum(text.weight for text in mixture.texts.values())
    found: list[tuple[GivenText, float]] = []
    for name, text in mixture.texts.items():
        share = text.weight / total
        enough = max(LEAST_CHARACTERS, round(CHARACTERS_A_TOKEN * tokens * share))
        try:
            found.append((_mixed_text(text, enough, max(1, round(tokens * share))), share))
        except InputError as error:
            what = f"texts.{name}: {error.what}"
            raise InputError(what, field=mixture.file, hint=error.hint) from error
    return found


def _mixed_text(text: MixedText, enough: int, tokens: int) -> GivenText:
    """One text of a mixture; of a data set, so many characters unless it says how many itself."""
    if text.files:
        given = read_given(text.files, "", text.field, "train", characters=characters_for(tokens))
        assert given is not None
        return given
    documents = read_dataset(
        text.dataset,
        text.field,
        "train",
        characters=text.characters or enough,
        revision=text.revision,
    )
    return GivenText(documents, named=dataset_name(text.dataset))


def base_name(path: Path) -> str:
    """What results, which are shared, call a file or a folder: where it lies is not said."""
    name = os.path.basename(os.path.abspath(path))
    return f"{name}/" if path.is_dir() else name


def dataset_name(name: str) -> str:
    """What results call a data set."""
    repository, colon, rest = name.partition(":")
    local = Path(repository)
    return f"{base_name(local)}{colon}{rest}" if local.exists() else name
