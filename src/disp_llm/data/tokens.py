"""Sources -> streams of tokens, and what of them is held out.

A stream begins with one BOS where the tokenizer uses one, and has none inside. (The paper's
released code puts one at every line, which the model never saw in training.)

A tokenizer takes about 150 bytes a character while it works, so a long text is read in pieces that
overlap. Two pieces are cut and joined at a token that both have, with the same tokens around it:

- between two words, as the tokenizer parts them before it looks at its vocabulary: what follows is
  then read alike whatever stands before;
- inside a word that is longer than the overlap, where the model is BPE: tokens are those of the
  whole text exactly if every two neighbours are those of their own text, and all neighbours are.

Where there is no such token (white space or a word of thousands of characters), the text is read
again in longer pieces, at last in one. The stream is always that of one call over the joined text.

N tokens of the stream.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.examples import stream_of_examples
from disp_llm.data.sources import HELD_OUT, Given, GivenText, Source, Sources, read_sources
from disp_llm.data.windows import Corpus, Stream, require_length, usual_bos

SEPARATOR = "\n\n"
"""Between documents; the usual perplexity text of WikiText joins its rows with it too."""

PIECE = 2**17
"""Characters that are read at once at first."""

OVERLAP = 1 / 32
"""Share of a piece that it has in common with the next one."""

GROWTH = 8
"""How much longer pieces become where two cannot be joined."""

AGREED = 16
"""Tokens on each side of a cut that both pieces have."""


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
        if isinstance(self.evaluation, Tensor):
            return min(config.context, len(self.evaluation))
        self.evaluation.require_length(config.context, "context")
        return len(self.evaluation.longest.tokens)


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
        whole = sum(map(len, streams))
        parted = [_parted(text, stream) for text, stream in zip(texts, streams, strict=True)]
        streams, ends = [left for left, _ in parted], [end for _, end in parted]
        last = _in_turn(ends, _weights(config, sources.learning, ends), context)
        held_out = GivenText(
            None, last, texts[0].field, f"the last {len(last) / whole:.0%} of {name}"
        )
    evaluation = stream_of(held_out, tokenizer, bos_token_id)
    corpus = Corpus(
        streams=tuple(streams),
        weights=_weights(config, sources.learning, streams),
        bos_token_id=bos_token_id,
        field=texts[0].field,
        names=tuple(text.name for text in texts),
    )
    hashes = {"text_sha256": joint_sha256(texts), "eval_text_sha256": held_out.sha256}
    return Texts(corpus, evaluation, {"text": name, "eval_text": held_out.measured_name} | hashes)


def _parted(text: Given, stream: Stream) -> tuple[Tensor, Tensor]:
    """What is left to learn from, and the end, which is only measured on."""
    assert isinstance(text, GivenText)  # beside examples, some of these are held out
    assert isinstance(stream, Tensor)
    held_out, tokens = text.held_out, len(stream)
    left = int(tokens * (1 - HELD_OUT)) if held_out is None else tokens - held_out
    return stream[:left], stream[left:]


def _in_turn(ends: Sequence[Tensor], weights: Sequence[float], context: int) -> Tensor:
    """The ends of several texts in pieces as long as a window is, in turn, so that as many windows
    from the start as are read are of every text what its weight says. Pieces that fill no window
    come last, for windows behind them would each be of two texts."""
    pieces = [
        (len(piece) < context, number / weight if weight else math.inf, piece)
        for end, weight in zip(ends, weights, strict=True)
        for number, piece in enumerate(end.split(context), start=1)
    ]
    return torch.cat([piece for *_, piece in sorted(pieces, key=lambda one: one[:2])])


def _weights(
    config: TextConfig, sources: Sequence[Source], streams: Sequence[Stream]
) -> tuple[float, ...]:
    """How often each source is drawn: as asked or, where nothing is, by the length of what it is
    part of."""
    whole: list[float] = list(config.weights)
    if not whole:
        whole = [0.0] * (1 + max(source.group for source in sources))
        for source, stream in zip(sources, streams, strict=True):
            whole[source.group] += len(stream)
    total = sum(whole) or 1.0
    return tuple(whole[one.group] * one.share / total for one in sources)


def joint_sha256(texts: Sequence[Given]) -> str:
    """The hash of several sources in their order; of a single one, its own."""
    if len(texts) == 1:
        return texts[0].sha256
    return hashlib.sha256(b"".join(bytes.fromhex(text.sha256) for text in texts)).hexdigest()


def stream_of(given: Given, tokenizer: Any, bos_token_id: int | None = None) -> Stream:
    """The tokens of a text, or of examples, each of which begins with that BOS if any."""
    if isinstance(given, GivenText):
        return stream_of_text(given, tokenizer)
    return stream_of_examples(given, tokenizer, bos_token_id)


def stream_of_text(given: GivenText, tokenizer: Any) -> Int[Tensor, " N"]:
    """The tokens of a text, two at least; ids that the tokenizer does not have are refused."""
    found = given.tokens
    if found is None:
        found = tokenize(given.documents or (), tokenizer)
    elif (largest := int(found.max())) >= len(tokenizer):
        raise InputError(
            f"holds the token id {largest}, and the tokenizer has {len(tokenizer)}",
            field=given.field,
            hint="give ids of the tokenizer of this model",
        )
    require_length(found, 2, given.field, given.name)
    return found


def tokenize(documents: Iterable[str], tokenizer: Any) -> Int[Tensor, " N"]:
    """One stream: an initial BOS where the tokenizer adds one, then the documents, joined."""
    text = SEPARATOR.join(documents)
    bos = usual_bos(tokenizer)
    first = torch.tensor([] if bos is None else [bos], dtype=torch.long)
    # Other tokenizers do not say where in the text a token stands.
    size = PIECE if isinstance(tokenizer, PreTrainedTokenizerFast) else len(text)
    while size < len(text):
        parts = _stitched(text, tokenizer, size)
        if parts is not None:
            return torch.cat([first, *parts])
        size *= GROWTH
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.cat([first, torch.tensor(ids, dtype=torch.long)])


def _stitched(text: str, tokenizer: Any, size: int) -> list[Tensor] | None:
    """The ids of all pieces, without what two have in common; None where two cannot be joined."""
    overlap = round(size * OVERLAP)
    step = size - overlap
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    ids: list[Tensor] = []
    before: list[_Token] = []
    for start in range(0, len(text) - overlap, step):
        piece = _tokens_of(text[start : start + size], start, tokenizer)
        if start:
            cut = _cut(before, piece, range(start, start + overlap), is_bpe)
            if cut is None:
                return None
            ids.append(_ids(before[: cut[0]]))
            piece = piece[cut[1] :]
        before = piece
    return [*ids, _ids(before)]


class _Token(NamedTuple):
    place: tuple[int, int, int]
    """Where it begins and ends in the whole text, and its id."""
    begins_word: bool


def _ids(tokens: list[_Token]) -> Int[Tensor, " N"]:
    return torch.tensor([token.place[2] for token in tokens], dtype=torch.long)


def _tokens_of(text: str, start: int, tokenizer: Any) -> list[_Token]:
    """Of a piece of the text that starts there."""
    found = tokenizer(
        text, add_special_tokens=False, verbose=False, return_offsets_mapping=True
    )  # fmt: skip
    words = found.word_ids(0)
    return [
        _Token((start + begin, start + end, token), word != before)
        for (begin, end), token, word, before in zip(
            found["offset_mapping"], found["input_ids"], words, [None, *words], strict=False
        )
    ]


def _cut(
    left: list[_Token], right: list[_Token], both: range, is_bpe: bool
) -> tuple[int, int] | None:
    """The first token that two pieces can be joined at, by its number in each; None = there is
    none.

    Args:
        both: the characters that both have.
    """
    of_left, of_right = _common(left, both), _common(right, both)
    has = [token.place for token in left[of_left]]
    also = [token.place for token in right[of_right]]
    later = (*left[of_left][1:], *right[of_right][1:])
    inside = is_bpe and not any(token.begins_word for token in later)
    place_of = {token: number for number, token in enumerate(also)}
    for at in range(AGREED, len(has) - AGREED):
        place = place_of.get(has[at], 0)
        around = has[at - AGREED : at + AGREED]
        if place < AGREED or around != also[place - AGREED : place + AGREED]:
            continue
        i, j = of_left.start + at, of_right.start + place
        if inside or (left[i].begins_word and right[j].begins_word):
            return i, j
    return None


def _common(tokens: list[_Token], both: range) -> slice:
    """Those that begin at one of these characters."""
    found = [number for number, token in enumerate(tokens) if token.place[0] in both]
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)
