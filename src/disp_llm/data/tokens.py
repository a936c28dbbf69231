"""Files, hub data sets, the embedded speeches, what the model writes, or examples -> streams of
tokens -> windows.

A stream begins with one BOS where the tokenizer uses one, and has none inside. (The paper's
released code puts one at every line, which the model never saw in training.)

B windows, T tokens of a window, N tokens of the stream.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.example_tokens import ExampleStream, stream_of_examples
from disp_llm.data.examples import HELD_OUT, GivenExamples
from disp_llm.data.given import GivenText, joint_sha256
from disp_llm.data.sources import Given, Sources, read_sources
from disp_llm.data.tokenizing import tokenize
from disp_llm.data.windows import Windows, joined, random_windows, with_bos
from disp_llm.runs.job import Process

Stream = Tensor | ExampleStream
"""The tokens of a text, (N), or those of examples."""


@dataclass(frozen=True)
class Corpus:
    """Text to learn from, one stream of tokens a source."""

    streams: tuple[Stream, ...]
    weights: tuple[float, ...] = (1.0,)
    """Share of the windows that come from each source; they sum to 1."""
    bos_token_id: int | None = None
    """A token that takes the place of the first of every window; None = none does."""
    field: str = "text"
    """The setting that the text was given in."""
    names: tuple[str, ...] = ()
    """What the sources are called."""

    def require_length(self, tokens: int, setting: str) -> None:
        """Refuses a source that cannot fill one window, whose length that setting says."""
        for i, stream in enumerate(self.streams):
            if isinstance(stream, ExampleStream):
                stream.require_length(tokens, setting)
                continue
            name = self.names[i] if self.names else "the text"
            hint = f"give more text or a smaller `{setting}`"
            require_length(stream, tokens, self.field, name, hint)

    def windows(self, source: int, count: int, length: int, noise: torch.Generator) -> Windows:
        """Windows at random places of one source."""
        stream = self.streams[source]
        if isinstance(stream, ExampleStream):
            return stream.random_windows(count, length, noise)
        return Windows(random_windows(stream, count, length, noise, self.bos_token_id))

    def draw(self, count: int, length: int, noise: torch.Generator) -> Windows:
        """Windows in a random order: of every source as many as its weight says, to the next whole
        number above or below, so that a step is not all of a kind."""
        if len(self.streams) == 1:
            return self.windows(0, count, length, noise)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        ends = weights.cumsum(0) / weights.sum()
        first = torch.rand((), generator=noise, dtype=torch.float64)
        places = (torch.arange(count) + first) / count  # systematic sampling
        sources = torch.searchsorted(ends, places, right=True).clamp(max=len(weights) - 1)
        sources = sources[torch.randperm(count, generator=noise)]
        return joined([self.windows(source, 1, length, noise) for source in sources.tolist()])

    def draw_own(
        self, count: int, length: int, noise: torch.Generator, process: Process
    ) -> Windows:
        """The part of one process, so many windows, of a batch that all draw alike."""
        windows = self.draw(count * process.count, length, noise)
        return windows[process.own(torch.arange(len(windows)))]


@dataclass(frozen=True)
class Texts:
    """Learning text and evaluation text of one task; the two share no token."""

    corpus: Corpus
    evaluation: Stream
    names: dict[str, str]
    """Where they came from, `text` and `eval_text`, without the folders that they lie in; and the
    SHA-256 of what was read, `text_sha256` and `eval_text_sha256`: of the documents (`GivenText`),
    and of the ids where they are given or held out."""

    def longest_window(self, config: PerplexityConfig) -> int:
        """Tokens of the longest window that is measured on."""
        if isinstance(self.evaluation, ExampleStream):
            self.evaluation.require_length(config.context, "context")
            return len(self.evaluation.longest.tokens)
        return config.longest_window(len(self.evaluation))


def load_tokens(
    config: TextConfig,
    tokenizer: Any,
    bos_token_id: int | None = None,
    sources: Sources | None = None,
    write: Callable[[float], GivenText] | None = None,
    context: int = PerplexityConfig.context,
) -> Texts:
    """Tokenises the texts that the settings name, and makes the model write what is missing.

    Args:
        bos_token_id: first token of every window, where the model needs one.
        write: lets the model write that share of what is learned from.
        context: tokens of a window that is measured on.
    """
    sources = sources or read_sources(config)
    texts: list[Given] = []
    for source in sources.learning:
        share = config.weights[source.group] / sum(config.weights) if config.weights else 1.0
        if source.text is not None:
            texts.append(source.text)
        else:
            assert write is not None, "nobody writes text"
            texts.append(write(share))
    streams = [stream_of(text, tokenizer, bos_token_id) for text in texts]
    held_out, name = sources.evaluation, ", ".join(text.name for text in texts)
    if held_out is None:
        streams, ends, share = _held_out(texts, streams)
        last = _in_turn(ends, _weights(config, sources, list(map(len, ends))), context)
        held_out = GivenText(None, last, texts[0].field, f"the last {share:.0%} of {name}")
    evaluation = stream_of(held_out, tokenizer, bos_token_id)
    if not isinstance(evaluation, ExampleStream):
        require_length(evaluation, 2, held_out.field, held_out.name)
    corpus = Corpus(
        streams=tuple(streams),
        weights=_weights(config, sources, [len(stream) for stream in streams]),
        bos_token_id=bos_token_id,
        field=texts[0].field,
        names=tuple(text.name for text in texts),
    )
    hashes = {"text_sha256": joint_sha256(texts), "eval_text_sha256": held_out.sha256}
    return Texts(corpus, evaluation, {"text": name, "eval_text": held_out.measured_name} | hashes)


def _held_out(
    texts: list[Given], streams: list[Stream]
) -> tuple[list[Stream], list[Tensor], float]:
    """What is left to learn from, the end of every text, which is only measured on, and the share
    that all of these are."""
    left: list[Stream] = []
    ends: list[Tensor] = []
    for text, stream in zip(texts, streams, strict=True):
        assert isinstance(text, GivenText)  # beside examples, some of these are held out
        assert isinstance(stream, Tensor)
        usual = len(stream) - int(len(stream) * (1 - HELD_OUT))
        end = len(stream) - (usual if text.held_out is None else text.held_out)
        left.append(stream[:end])
        ends.append(stream[end:])
    said = any(isinstance(text, GivenText) and text.held_out is not None for text in texts)
    share = sum(map(len, ends)) / sum(map(len, streams)) if said else HELD_OUT
    return left, ends, share


def _in_turn(ends: list[Tensor], weights: tuple[float, ...], context: int) -> Tensor:
    """The ends of several texts in pieces as long as a window is, in turn, so that as many windows
    from the start as are read are of every text what its weight says."""
    pieces = [list(end.split(context)) for end in ends]
    taken = [0] * len(ends)
    found: list[Tensor] = []
    while left := [i for i, parts in enumerate(pieces) if taken[i] < len(parts)]:
        next_one = min(left, key=lambda i: (taken[i] + 1) / weights[i] if weights[i] else math.inf)
        found.append(pieces[next_one][taken[next_one]])
        taken[next_one] += 1
    return torch.cat(found)


def _weights(config: TextConfig, sources: Sources, lengths: list[int]) -> tuple[float, ...]:
    """How often each source is drawn: as asked or, where nothing is, by the length of what it is
    part of."""
    groups = [source.group for source in sources.learning]
    whole: list[float] = list(config.weights)
    if not whole:
        whole = [0.0] * (1 + max(groups))
        for group, length in zip(groups, lengths, strict=True):
            whole[group] += length
    total = sum(whole) or 1.0
    return tuple(whole[one.group] * one.share / total for one in sources.learning)


def stream_of(given: Given, tokenizer: Any, bos_token_id: int | None = None) -> Stream:
    """The tokens of a text, or of examples, each of which begins with that BOS if any."""
    if isinstance(given, GivenExamples):
        return stream_of_examples(given, tokenizer, bos_token_id)
    return stream_of_text(given, tokenizer)


def stream_of_text(given: GivenText, tokenizer: Any) -> Int[Tensor, " N"]:
    """The tokens of a text; ids that the tokenizer does not have are refused."""
    if given.documents is not None:
        return tokenize(given.documents, tokenizer)
    assert given.tokens is not None
    largest = int(given.tokens.max())
    if largest >= len(tokenizer):
        raise InputError(
            f"holds the token id {largest}, and the tokenizer has {len(tokenizer)}",
            field=given.field,
            hint="give ids of the tokenizer of this model",
        )
    return given.tokens


def opening(stream: Stream, tokens: int) -> Int[Tensor, " N"]:
    """The first tokens of a text, or the prompt of the first example."""
    return stream.examples[0].prompt if isinstance(stream, ExampleStream) else stream[:tokens]


def require_length(
    stream: Tensor,
    tokens: int,
    field: str,
    name: str = "the text",
    hint: str = "give more text",
) -> None:
    """Refuses a stream that cannot fill one window."""
    if len(stream) < tokens:
        raise InputError(
            f"{name} has {len(stream)} tokens and a window takes {tokens}", field=field, hint=hint
        )


def eval_windows(
    stream: Int[Tensor, " N"], config: PerplexityConfig, bos_token_id: int | None = None
) -> Int[Tensor, "B T"]:
    """Windows in order from the start; a stream shorter than one window gives what it has."""
    context = config.longest_window(len(stream))
    windows = stream.unfold(0, context, context)
    if config.windows and len(windows) < config.windows:
        warnings.warn(
            f"the text fills {len(windows)} of {config.windows} windows of {context} tokens",
            stacklevel=2,
        )
    return with_bos(windows[: config.windows] if config.windows else windows, bos_token_id)
