"""Files, hub data sets, the embedded speeches or the model's own words -> streams of tokens ->
windows.

A stream begins with one BOS where the tokenizer uses one, and has none inside. (The paper's
released code puts one at every line, which the model never saw in training.)

B windows, T tokens of a window, N tokens of the stream.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.named import Sources, read_sources
from disp_llm.data.sources import GivenText, joint_sha256

SEPARATOR = "\n\n"
"""Between documents; the usual perplexity text of WikiText joins its rows with it too."""


HELD_OUT = 0.1
"""Share of the learning text, at its end, that is only measured on when no other text is given; of
own words it is as many as are measured on."""


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
    field: str = "text"
    """The setting that the text was given in."""
    names: tuple[str, ...] = ()
    """What the sources are called."""

    def require_length(self, tokens: int, setting: str) -> None:
        """Refuses a source that cannot fill one window, whose length that setting says."""
        for i, stream in enumerate(self.streams):
            name = self.names[i] if self.names else "the text"
            hint = f"give more text or a smaller `{setting}`"
            require_length(stream, tokens, self.field, name, hint)


@dataclass(frozen=True)
class Texts:
    """Learning text and evaluation text of one task; the two share no token."""

    corpus: Corpus
    evaluation: Int[Tensor, " N"]
    names: dict[str, str]
    """Where they came from, `text` and `eval_text`, without the folders that they lie in; and the
    SHA-256 of what was read, `text_sha256` and `eval_text_sha256`: of the documents (`GivenText`),
    and of the ids where they are given or held out."""


def load_tokens(
    config: TextConfig,
    tokenizer,
    bos_token_id: int | None = None,
    sources: Sources | None = None,
    write: Callable[[float], GivenText] | None = None,
) -> Texts:
    """Tokenises the texts that the settings name, and makes the model write what is missing.

    Args:
        bos_token_id: first token of every window, where the model needs one.
        sources: what was read of them already, or lies in memory.
        write: gives the model's own words, which are that share of what is learned from.

    Raises:
        InputError: a file or data set is unusable.
    """
    sources = sources or read_sources(config)
    texts: list[GivenText] = []
    for source in sources.learning:
        text = source.text
        if text is None:
            assert write is not None, "nobody writes the model's own words"
            given = config.weights[source.group] / sum(config.weights) if config.weights else 1.0
            text = write(given)
        texts.append(text)
    held_out = sources.evaluation
    streams = [stream_of(text, tokenizer) for text in texts]
    name = ", ".join(text.name for text in texts)
    if held_out is None:
        cuts = [_cut(text, stream) for text, stream in zip(texts, streams, strict=True)]
        last = torch.cat([s[cut:] for s, cut in zip(streams, cuts, strict=True)])
        usual = all(text.held_out is None for text in texts)
        share = HELD_OUT if usual else len(last) / sum(map(len, streams))
        streams = [stream[:cut] for stream, cut in zip(streams, cuts, strict=True)]
        held_out = GivenText(None, last, texts[0].field, f"the last {share:.0%} of {name}")
    evaluation = stream_of(held_out, tokenizer)
    require_length(evaluation, 2, held_out.field, held_out.name)
    corpus = Corpus(
        streams=tuple(streams),
        weights=_weights(config, sources, [len(stream) for stream in streams]),
        dynamic=config.mix == "dynamic",
        bos_token_id=bos_token_id,
        field=texts[0].field,
        names=tuple(text.name for text in texts),
    )
    hashes = {"text_sha256": joint_sha256(texts), "eval_text_sha256": held_out.sha256}
    return Texts(corpus, evaluation, {"text": name, "eval_text": held_out.name} | hashes)


def _cut(text: GivenText, stream: Tensor) -> int:
    """Where the part of a text begins that is only measured on."""
    usual = int(len(stream) * (1 - HELD_OUT))
    return usual if text.held_out is None else len(stream) - text.held_out


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


def stream_of(given: GivenText, tokenizer) -> Int[Tensor, " N"]:
    """The tokens of a text.

    Raises:
        InputError: ids that the tokenizer does not have.
    """
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
