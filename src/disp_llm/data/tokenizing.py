"""Documents -> one stream of tokens, in bounded memory.

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from disp_llm.data.windows import usual_bos

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


def tokenize(documents: Iterable[str], tokenizer: Any) -> Int[Tensor, " N"]:
    """One stream: an initial BOS where the tokenizer adds one, then the documents, joined."""
    documents = list(documents)
    length = sum(map(len, documents)) + len(SEPARATOR) * (len(documents) - 1)
    # Other tokenizers do not say where in the text a token stands.
    size = PIECE if isinstance(tokenizer, PreTrainedTokenizerFast) else length
    bos = usual_bos(tokenizer)
    first = [] if bos is None else [torch.tensor([bos])]
    while size < length:
        parts = _stitched(documents, tokenizer, size)
        if parts is not None:
            return torch.cat([*first, *parts])
        size *= GROWTH
    text = SEPARATOR.join(documents)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.cat([*first, torch.tensor(ids, dtype=torch.long)])


@dataclass(frozen=True)
class _Piece:
    """The tokens of a piece of the text."""

    start: int
    """Of the piece, in characters of the whole text."""
    tokens: list[tuple[int, int, int]]
    """Where each begins and ends in the whole text, and its id."""
    words: list[int | None]
    """The word that each token is a part of."""

    def ids(self, begin: int, end: int | None = None) -> Int[Tensor, " N"]:
        """Those of some tokens."""
        return torch.tensor([token for _, _, token in self.tokens[begin:end]], dtype=torch.long)

    def common(self, first: int, end: int) -> range:
        """The tokens that begin between two characters of the whole text."""
        inside = [i for i, (start, _, _) in enumerate(self.tokens) if first <= start < end]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def begins_word(self, token: int) -> bool:
        """Whether it is the first token of a word."""
        return self.words[token - 1] != self.words[token]


def _stitched(documents: list[str], tokenizer: Any, size: int) -> list[Tensor] | None:
    """The ids of all pieces, without what two have in common; None where two cannot be joined."""
    ids: list[Tensor] = []
    before, begin = None, 0
    for start, text in _texts(documents, size):
        piece = _tokens_of(text, start, tokenizer)
        if before is not None:
            cut = _cut(before, piece, start + round(size * OVERLAP), tokenizer)
            if cut is None:
                return None
            ids.append(before.ids(begin, cut[0]))
            begin = cut[1]
        before = piece
    assert before is not None
    return [*ids, before.ids(begin)]


def _tokens_of(text: str, start: int, tokenizer: Any) -> _Piece:
    found = tokenizer(
        text, add_special_tokens=False, verbose=False, return_offsets_mapping=True
    )  # fmt: skip
    placed = zip(found["offset_mapping"], found["input_ids"], strict=True)
    tokens = [(start + begin, start + end, token) for (begin, end), token in placed]
    return _Piece(start, tokens, found.word_ids(0))


def _texts(documents: list[str], size: int) -> Iterator[tuple[int, str]]:
    """Overlapping pieces of the joined text, each with the character that it begins at."""
    step = size - round(size * OVERLAP)
    start, held, parts = 0, 0, []
    for number, document in enumerate(documents):
        slices = (document[i : i + size] for i in range(0, len(document), size))
        for part in (SEPARATOR if number else "", *slices):
            parts.append(part)
            held += len(part)
            if held <= size:
                continue
            text = "".join(parts)
            while len(text) > size:
                yield start, text[:size]
                start, text = start + step, text[step:]
            parts, held = [text], len(text)
    yield start, "".join(parts)


def _cut(left: _Piece, right: _Piece, end: int, tokenizer: Any) -> tuple[int, int] | None:
    """The first token that two pieces can be joined at, by its number in each; None = there is
    none."""
    of_left, of_right = left.common(right.start, end), right.common(right.start, end)
    has = left.tokens[of_left.start : of_left.stop]
    also = right.tokens[of_right.start : of_right.stop]
    place_of = {key: place for place, key in enumerate(also)}
    one_word = not (
        any(map(left.begins_word, of_left[1:])) or any(map(right.begins_word, of_right[1:]))
    )
    inside = one_word and type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    for at in range(AGREED, len(has) - AGREED):
        place = place_of.get(has[at], 0)
        around = has[at - AGREED : at + AGREED]
        if place < AGREED or around != also[place - AGREED : place + AGREED]:
            continue
        i, j = of_left[at], of_right[place]
        if inside or (left.begins_word(i) and right.begins_word(j)):
            return i, j
    return None
