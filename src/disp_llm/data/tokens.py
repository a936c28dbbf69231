"""Sources -> streams of tokens for learning and a held-out stream for evaluation.

A stream begins with one BOS if the tokenizer uses one, and has none inside. (The paper's released
code puts one at every line, which the model never saw in training.)

A tokenizer needs about 150 bytes per character, so a long text is tokenised in overlapping pieces.
Two pieces are joined at a token that both have, with the same tokens around it:

- between two words of the pre-tokenizer: the tokens that follow do not depend on what precedes; or
- inside a word longer than the overlap, if the tokenizer is BPE. A sequence is the tokenisation of
  the whole text exactly if every pair of neighbours is the tokenisation of the pair's own text.
  The joint keeps all such pairs.

If there is no such token (white space or a word of thousands of characters), the text is tokenised
again in longer pieces, at last in one. The stream always equals one call over the joined text.

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
from disp_llm.data.example_tokens import stream_of_examples
from disp_llm.data.sources import HELD_OUT, Given, GivenText, Source, Sources, read_sources
from disp_llm.data.windows import Corpus, Stream, require_length, usual_bos

SEPARATOR = "\n\n"
"""Joins documents; the usual WikiText perplexity also joins rows with it."""

PIECE = 2**17
"""Characters of a piece in the first attempt."""

OVERLAP = 1 / 32
"""Share of a piece that overlaps the next one."""

GROWTH = 8
"""Factor by which pieces grow if two cannot be joined."""

AGREED = 16
"""Tokens on each side of a cut that must agree in both pieces."""


@dataclass(frozen=True)
class Texts:
    """Learning text and evaluation text of one task: separate or held-out data."""

    corpus: Corpus
    evaluation: Stream
    names: dict[str, str]
    """`text`, `eval_text`: names of the sources, without their folders. `text_sha256`,
    `eval_text_sha256`: SHA-256 of the documents (`GivenText`), of ids that are given or held out,
    or of the examples."""

    def longest_window(self, config: PerplexityConfig) -> int:
        """Returns the number of tokens in the longest evaluation window."""
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
    rows: int | None = None,
) -> Texts:
    """Tokenises the texts that the settings name, and lets the model write missing ones.

    Args:
        bos_token_id: first token of every window; None if the model needs none.
        write: lets the model write a given share of the learning text.
        context: tokens of an evaluation window.
        rows: of the model's embedding; None if its tokenizer cannot have more tokens.
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
    streams = [stream_of(text, tokenizer, bos_token_id, rows) for text in texts]
    held_out, name = sources.evaluation, ", ".join(text.name for text in texts)
    if held_out is None:
        whole = sum(map(len, streams))
        parted = [_parted(text, stream) for text, stream in zip(texts, streams, strict=True)]
        streams, ends = [left for left, _ in parted], [end for _, end in parted]
        last = _in_turn(ends, _weights(config, sources.learning, ends), context)
        held_out = GivenText(
            None, last, texts[0].field, f"the last {len(last) / whole:.0%} of {name}"
        )
    evaluation = stream_of(held_out, tokenizer, bos_token_id, rows)
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
    """Splits a stream into its learning part and its held-out end."""
    assert isinstance(text, GivenText)  # with examples, evaluation data always exists
    assert isinstance(stream, Tensor)
    held_out, tokens = text.held_out, len(stream)
    left = int(tokens * (1 - HELD_OUT)) if held_out is None else tokens - held_out
    return stream[:left], stream[left:]


def _in_turn(ends: Sequence[Tensor], weights: Sequence[float], context: int) -> Tensor:
    """Interleaves the held-out ends of several texts, one window at a time, so that any prefix has
    each text in proportion to its weight. Pieces shorter than a window come last: every window
    behind one would straddle two texts."""
    pieces = [
        (len(piece) < context, number / weight if weight else math.inf, piece)
        for end, weight in zip(ends, weights, strict=True)
        for number, piece in enumerate(end.split(context), start=1)
    ]
    return torch.cat([piece for *_, piece in sorted(pieces, key=lambda one: one[:2])])


def _weights(
    config: TextConfig, sources: Sequence[Source], streams: Sequence[Stream]
) -> tuple[float, ...]:
    """Returns how often each source is drawn: its share of its text's weight, which is the setting
    or, by default, the text's length."""
    whole: list[float] = list(config.weights)
    if not whole:
        whole = [0.0] * (1 + max(source.group for source in sources))
        for source, stream in zip(sources, streams, strict=True):
            whole[source.group] += len(stream)
    total = sum(whole) or 1.0
    return tuple(whole[one.group] * one.share / total for one in sources)


def joint_sha256(texts: Sequence[Given]) -> str:
    """Returns the hash of several sources in order; for a single one, its own."""
    if len(texts) == 1:
        return texts[0].sha256
    return hashlib.sha256(b"".join(bytes.fromhex(text.sha256) for text in texts)).hexdigest()


def stream_of(
    given: Given, tokenizer: Any, bos_token_id: int | None = None, rows: int | None = None
) -> Stream:
    """Returns the tokens of a text, or of examples, each of which begins with the given BOS."""
    if isinstance(given, GivenText):
        return stream_of_text(given, tokenizer, rows)
    stream = stream_of_examples(given, tokenizer, bos_token_id)
    for example in stream.examples:
        require_embedded(example.tokens, tokenizer, rows, given.field, f"{example.place}, ")
    return stream


def stream_of_text(given: GivenText, tokenizer: Any, rows: int | None = None) -> Int[Tensor, " N"]:
    """Returns the tokens of a text; refuses fewer than two, and ids beyond the tokenizer or the
    embedding."""
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
    require_embedded(found, tokenizer, rows, given.field, f"{given.name} ")
    return found


def require_embedded(
    tokens: Int[Tensor, " N"], tokenizer: Any, rows: int | None, field: str, name: str = ""
) -> None:
    """Refuses a token without a row of the embedding, such as one that somebody added to the
    tokenizer alone.

    Args:
        rows: of the embedding; None = there are enough.
        field: setting that gives the tokens.
        name: of what has them.
    """
    largest = int(tokens.max()) if rows is not None and len(tokens) else 0
    if rows is not None and largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise InputError(
            f"{name}has {token!r}, the token {largest}, and the embedding has {rows} rows",
            field=field,
            hint="leave that token out, or call `resize_token_embeddings` of the model first",
        )


def tokenize(documents: Iterable[str], tokenizer: Any) -> Int[Tensor, " N"]:
    """Returns one stream: BOS if the tokenizer adds one, then the joined documents."""
    text = SEPARATOR.join(documents)
    bos = usual_bos(tokenizer)
    first = torch.tensor([] if bos is None else [bos], dtype=torch.long)
    # Other tokenizers do not give the offsets of tokens.
    size = PIECE if isinstance(tokenizer, PreTrainedTokenizerFast) else len(text)
    while size < len(text):
        parts = _stitched(text, tokenizer, size)
        if parts is not None:
            return torch.cat([first, *parts])
        size *= GROWTH
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.cat([first, torch.tensor(ids, dtype=torch.long)])


def _stitched(text: str, tokenizer: Any, size: int) -> list[Tensor] | None:
    """Returns the ids of all pieces without overlaps; None if two pieces cannot be joined."""
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
    """Its begin and end in the whole text, and its id."""
    begins_word: bool


def _ids(tokens: list[_Token]) -> Int[Tensor, " N"]:
    return torch.tensor([token.place[2] for token in tokens], dtype=torch.long)


def _tokens_of(text: str, start: int, tokenizer: Any) -> list[_Token]:
    """Tokenises a piece of the text that begins at `start`."""
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
    """Returns the index, in each piece, of the first token where they can be joined, or None.

    Args:
        both: range of the characters that both pieces have.
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
    """Returns the slice of the tokens that begin in the range."""
    found = [number for number, token in enumerate(tokens) if token.place[0] in both]
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)
