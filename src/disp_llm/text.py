"""Files, hub data sets or the embedded speeches -> one stream of tokens -> windows.

A stream begins with one BOS where the tokenizer uses one, and has none inside. (The paper's
released code puts one at every line, which the model never saw in training.)

B windows, T tokens of a window, N tokens of the stream.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config import EvalConfig, InputError, TextConfig
from disp_llm.embedded import speeches

SEPARATOR = "\n\n"
"""Between documents; the usual perplexity text of WikiText joins its rows with it too."""

HELD_OUT = 0.1
"""Share of the learning text, at its end, that is only measured on when no other text is given."""


def read_documents(paths: Iterable[Path], field: str) -> list[str]:
    """The documents of text files: one a .txt or .raw file, one a line of .jsonl or row of
    .parquet.

    Raises:
        InputError: a file is missing, not text, or lacks the field.
    """
    documents: list[str] = []
    for path in paths:
        try:
            if path.suffix == ".parquet":
                documents += _parquet(path, field)
            else:
                content = path.read_text(encoding="utf-8")
                if "\0" in content:
                    raise InputError(
                        "is binary, not text", flag=f"--text {path}", mend="name a text file"
                    )
                documents += _jsonl(path, content, field) if path.suffix == ".jsonl" else [content]
        except OSError as error:
            raise InputError(
                f"{error.strerror or error}",
                flag=f"--text {path}",
                mend="name a file that can be read",
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                "is not UTF-8 text", flag=f"--text {path}", mend="name a text file, or convert it"
            ) from error
    return documents


def _jsonl(path: Path, content: str, field: str) -> list[str]:
    documents = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                documents.append(str(json.loads(line)[field]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} has no JSON object with '{field}'",
                    flag=f"--text {path}",
                    mend="name the right --text-field",
                ) from error
    return documents


def _parquet(path: Path, field: str) -> list[str]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path), columns=[field])
    except (ValueError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"no column '{field}' can be read",
            flag=f"--text {path}",
            mend="name the right --text-field",
        ) from error
    return [str(row) for row in table[field]]


def read_dataset(name: str, field: str, default_split: str) -> list[str]:
    """The rows of a hub data set NAME:CONFIG[:SPLIT].

    Raises:
        InputError: not found, not reachable, or without the field.
    """
    import datasets

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(repository, config or None, split=split or default_split)
        return [str(row) for row in rows[field]]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot load {name} ({first})",
            flag=f"data set {name}",
            mend="check NAME:CONFIG:SPLIT, --text-field and the network, or give files with --text",
        ) from error


def tokenize(documents: Iterable[str], tokenizer) -> Int[Tensor, " N"]:
    """One stream: an initial BOS where the tokenizer adds one, then the documents, joined."""
    text = SEPARATOR.join(documents)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if begins and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    return torch.tensor(ids, dtype=torch.long)


@dataclass(frozen=True)
class Corpus:
    """Text to learn from, one stream of tokens a source."""

    streams: tuple[Tensor, ...]
    weights: tuple[float, ...] = (1.0,)
    """Share of the windows that come from each source; they sum to 1."""
    dynamic: bool = False
    """Whether the weights are to follow the losses."""
    opening: int | None = None
    """A token that takes the place of the first of every window; None = none does."""

    def require_length(self, tokens: int, flag: str) -> None:
        """Refuses a source that cannot fill one window."""
        for stream in self.streams:
            require_length(stream, tokens, flag)


def load_tokens(
    config: TextConfig, tokenizer, opening: int | None = None
) -> tuple[Corpus, Tensor, dict[str, str]]:
    """(learning text, evaluation stream, where they came from); the two share no token.

    Args:
        opening: of every window, where the model needs one.

    Raises:
        InputError: a file or data set is unusable.
    """
    if config.weights:
        sources = [read_documents([path], config.text_field) for path in config.text]
        source = ", ".join(str(path) for path in config.text)
    else:
        given = read_given(config.text, config.dataset, config.text_field, "train")
        documents, source = given or speeches()
        sources = [documents]
    streams = [tokenize(documents, tokenizer) for documents in sources]
    apart = read_given(config.eval_text, config.eval_dataset, config.text_field, "test")
    if apart:
        held_out, eval_source = tokenize(apart[0], tokenizer), apart[1]
    else:
        cuts = [int(len(stream) * (1 - HELD_OUT)) for stream in streams]
        held_out = torch.cat([s[cut:] for s, cut in zip(streams, cuts, strict=True)])
        streams = [stream[:cut] for stream, cut in zip(streams, cuts, strict=True)]
        eval_source = f"the last {HELD_OUT:.0%} of {source}"
    total = sum(config.weights) or 1.0
    shares = tuple(weight / total for weight in config.weights) or (1.0,)
    corpus = Corpus(tuple(streams), shares, config.mix == "dynamic", opening)
    return corpus, held_out, {"text": source, "eval_text": eval_source}


def read_given(
    paths: Sequence[Path], dataset: str, field: str, split: str
) -> tuple[list[str], str] | None:
    """Documents of a hub data set or of files, and what to call them; None where neither is named.

    Raises:
        InputError: a file or the data set is unusable.
    """
    if dataset:
        return read_dataset(dataset, field, split), dataset
    if paths:
        return read_documents(paths, field), ", ".join(str(path) for path in paths)
    return None


def require_length(stream: Tensor, tokens: int, flag: str) -> None:
    """Refuses a stream that cannot fill one window."""
    if len(stream) < tokens:
        raise InputError(
            f"the text has {len(stream)} tokens and a window takes {tokens}",
            flag=flag,
            mend="give more text or shorter windows",
        )


def random_windows(
    stream: Int[Tensor, " N"],
    count: int,
    length: int,
    generator: torch.Generator,
    opening: int | None = None,
) -> Int[Tensor, "B T"]:
    """Windows at uniformly drawn places."""
    starts = torch.randint(len(stream) - length + 1, (count,), generator=generator)
    windows = torch.stack([stream[start : start + length] for start in starts.tolist()])
    return opened(windows, opening)


def opened(windows: Int[Tensor, "B T"], opening: int | None) -> Int[Tensor, "B T"]:
    """Windows with that token in place of their first; as they are without one."""
    if opening is None:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], opening), windows[:, 1:]], 1)


def eval_windows(
    stream: Int[Tensor, " N"], config: EvalConfig, opening: int | None = None
) -> Int[Tensor, "B T"]:
    """Windows in order from the start; a stream shorter than one window gives what it has."""
    context = min(config.context, len(stream))
    stride = min(config.stride or context, context)
    windows = stream.unfold(0, context, stride)
    if config.windows and len(windows) < config.windows:
        warnings.warn(
            f"the text fills {len(windows)} of {config.windows} windows of {context} tokens",
            stacklevel=2,
        )
    return opened(windows[: config.windows] if config.windows else windows, opening)
