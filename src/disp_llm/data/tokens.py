"""Files, hub data sets or the embedded speeches -> one stream of tokens -> windows.

A stream begins with one BOS where the tokenizer uses one, and has none inside. (The paper's
released code puts one at every line, which the model never saw in training.)

B windows, T tokens of a window, N tokens of the stream.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.reading import read_documents, read_given
from disp_llm.data.sources import GivenText
from disp_llm.models.embedded import speeches

SEPARATOR = "\n\n"
"""Between documents; the usual perplexity text of WikiText joins its rows with it too."""


HELD_OUT = 0.1
"""Share of the learning text, at its end, that is only measured on when no other text is given."""


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
    bos_token_id: int | None = None
    """A token that takes the place of the first of every window; None = none does."""

    def require_length(self, tokens: int, field: str) -> None:
        """Refuses a source that cannot fill one window."""
        for stream in self.streams:
            require_length(stream, tokens, field)


@dataclass(frozen=True)
class Texts:
    """Learning text and evaluation text of one task; the two share no token."""

    corpus: Corpus
    evaluation: Int[Tensor, " N"]
    names: dict[str, str]
    """Where they came from: `text` and `eval_text`."""


@dataclass(frozen=True)
class InMemory:
    """Text that a program handed over, in place of what the settings name."""

    text: GivenText | None = None
    eval_text: GivenText | None = None


def load_tokens(
    config: TextConfig,
    tokenizer,
    bos_token_id: int | None = None,
    in_memory: InMemory = InMemory(),
) -> Texts:
    """Reads and tokenises the texts that the settings name, or those in memory.

    Args:
        bos_token_id: first token of every window, where the model needs one.

    Raises:
        InputError: a file or data set is unusable.
    """
    streams, source = _learning_streams(config, tokenizer, in_memory.text)
    held_out = _evaluation_stream(config, tokenizer, in_memory.eval_text)
    if held_out is not None:
        evaluation, eval_source = held_out
    else:
        cuts = [int(len(stream) * (1 - HELD_OUT)) for stream in streams]
        evaluation = torch.cat([s[cut:] for s, cut in zip(streams, cuts, strict=True)])
        streams = [stream[:cut] for stream, cut in zip(streams, cuts, strict=True)]
        eval_source = f"the last {HELD_OUT:.0%} of {source}"
    total = sum(config.weights) or 1.0
    shares = tuple(weight / total for weight in config.weights) or (1.0,)
    corpus = Corpus(tuple(streams), shares, config.mix == "dynamic", bos_token_id)
    return Texts(corpus, evaluation, {"text": source, "eval_text": eval_source})


def _learning_streams(
    config: TextConfig, tokenizer, given: GivenText | None
) -> tuple[list[Tensor], str]:
    """One stream a source, and what to call them together."""
    if given is not None:
        return [stream_of(given, tokenizer)], given.name
    if config.weights:
        sources = [read_documents([path], config.text_field) for path in config.text]
        name = ", ".join(str(path) for path in config.text)
        return [tokenize(documents, tokenizer) for documents in sources], name
    read = read_given(config.text, config.dataset, config.text_field, "train")
    documents, name = read or speeches()
    return [tokenize(documents, tokenizer)], name


def _evaluation_stream(
    config: TextConfig, tokenizer, given: GivenText | None
) -> tuple[Tensor, str] | None:
    if given is not None:
        return stream_of(given, tokenizer), given.name
    read = read_given(config.eval_text, config.eval_dataset, config.text_field, "test", "eval_text")
    return None if read is None else (tokenize(read[0], tokenizer), read[1])


def stream_of(given: GivenText, tokenizer) -> Int[Tensor, " N"]:
    """The tokens of text in memory."""
    if given.tokens is not None:
        return given.tokens
    assert given.documents is not None
    return tokenize(given.documents, tokenizer)


def require_length(stream: Tensor, tokens: int, field: str) -> None:
    """Refuses a stream that cannot fill one window."""
    if len(stream) < tokens:
        raise InputError(
            f"the text has {len(stream)} tokens and a window takes {tokens}",
            field=field,
            hint="give more text or shorter windows",
        )


def random_windows(
    stream: Int[Tensor, " N"],
    count: int,
    length: int,
    generator: torch.Generator,
    bos_token_id: int | None = None,
) -> Int[Tensor, "B T"]:
    """Windows at uniformly drawn places."""
    starts = torch.randint(len(stream) - length + 1, (count,), generator=generator)
    windows = torch.stack([stream[start : start + length] for start in starts.tolist()])
    return with_bos(windows, bos_token_id)


def with_bos(windows: Int[Tensor, "B T"], bos_token_id: int | None) -> Int[Tensor, "B T"]:
    """Windows with that token in place of their first; as they are without one."""
    if bos_token_id is None:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], bos_token_id), windows[:, 1:]], 1)


def eval_windows(
    stream: Int[Tensor, " N"], config: PerplexityConfig, bos_token_id: int | None = None
) -> Int[Tensor, "B T"]:
    """Windows in order from the start; a stream shorter than one window gives what it has."""
    context = config.longest_window(len(stream))
    stride = min(config.stride or context, context)
    windows = stream.unfold(0, context, stride)
    if config.windows and len(windows) < config.windows:
        warnings.warn(
            f"the text fills {len(windows)} of {config.windows} windows of {context} tokens",
            stacklevel=2,
        )
    return with_bos(windows[: config.windows] if config.windows else windows, bos_token_id)
