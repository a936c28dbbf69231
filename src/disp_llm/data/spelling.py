"""Text in the tokens of a smaller vocabulary.

A removed token is spelled by kept ones, its pieces. Mean losses per token are not comparable across
vocabularies, so the loss of a window is the sum over its pieces, divided by its original tokens.
The smaller vocabulary's tokenizer splits text the same way, except for about one token in ten
thousand, where the next token would take over a piece (docs/experiment-log.md).

N tokens of the whole vocabulary, M pieces, P pieces of all V tokens together, W = V + 1.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.example_tokens import ExampleStream
from disp_llm.data.windows import Corpus, Stream, eval_windows
from disp_llm.models.vocabulary import BYTES, SPACE

END_OF_WORD = "</w>"
"""Suffix that some byte-pair tokenizers (BioGPT's) use for the space behind a word."""


@dataclass(frozen=True)
class Spelling:
    """The pieces that spell every token of a whole vocabulary."""

    pieces: Int[Tensor, " P"]
    """Pieces of all tokens, concatenated in the order of token ids."""
    bounds: Int[Tensor, " W"]
    """Start of each token's pieces, and the end of the last one's."""
    tokenizer: Any
    """The tokenizer of the smaller vocabulary."""
    bos_token_id: int | None
    """BOS in the whole vocabulary that every window begins with; None if the model needs none."""

    @classmethod
    def between(cls, whole: Any, small: Any, bos_token_id: int | None = None) -> "Spelling | None":
        """Returns the spelling of `whole` in tokens of `small`; None if their tokens are equal."""
        numbers, has = whole.get_vocab(), small.get_vocab()
        if numbers == has:
            return None
        split = small.backend_tokenizer.model.tokenize
        spelled: list[list[int]] = [[] for _ in range(max(numbers.values()) + 1)]
        for token, number in numbers.items():
            one = has.get(token)
            spelled[number] = [piece.id for piece in split(token)] if one is None else [one]
        bounds = torch.tensor([0, *(len(pieces) for pieces in spelled)]).cumsum(0)
        flat = torch.tensor([piece for pieces in spelled for piece in pieces])
        return cls(flat, bounds, small, bos_token_id)

    def lengths(self, tokens: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Returns how many pieces spell each token."""
        return self.bounds[tokens + 1] - self.bounds[tokens]

    def __call__(self, tokens: Int[Tensor, " N"]) -> Int[Tensor, " M"]:
        """Returns the pieces of a text."""
        lengths = self.lengths(tokens)
        before = lengths.cumsum(0) - lengths
        shift = (self.bounds[tokens] - before).repeat_interleave(lengths)
        return self.pieces[torch.arange(len(shift)) + shift]

    @property
    def first(self) -> Int[Tensor, " V"]:
        """The first piece of each token."""
        return self.pieces[self.bounds[:-1].clamp(max=len(self.pieces) - 1)]

    def corpus(self, corpus: Corpus, bos_token_id: int | None) -> Corpus:
        """Returns learning text in pieces."""
        streams = tuple(map(self.stream, corpus.streams))
        return replace(corpus, streams=streams, bos_token_id=bos_token_id)

    def stream(self, stream: Stream) -> Stream:
        """Returns a text or examples in pieces; the pieces of answer tokens are the answer."""
        if isinstance(stream, Tensor):
            return self(stream)
        return self.examples(stream)

    def longest_window(self, stream: Stream, config: PerplexityConfig) -> int:
        """Returns the number of pieces in the longest evaluation window."""
        if isinstance(stream, Tensor):
            windows = eval_windows(stream, config)
            return int(self.lengths(windows).sum(1).max())
        return len(self.examples(stream).longest.tokens)

    def examples(self, stream: ExampleStream) -> ExampleStream:
        """Returns examples in pieces; refuses examples with their own loss."""
        if any(one.loss for one in stream.examples):
            raise InputError(
                "examples with a loss of their own name tokens of the whole vocabulary",
                field="vocabulary",
                hint="leave it out",
            )
        return replace(
            stream,
            examples=tuple(
                replace(
                    one,
                    tokens=self(one.tokens),
                    counted=one.counted.repeat_interleave(self.lengths(one.tokens)),
                )
                for one in stream.examples
            ),
        )


def byte_lengths(tokenizer: Any) -> Int[Tensor, " V"]:
    """Returns the bytes of text that each token stands for; 0 for special tokens."""
    added, numbers = tokenizer.get_added_vocab(), tokenizer.get_vocab()
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and '"ByteLevel"' in backend.to_str()
    found = torch.zeros(max(numbers.values()) + 1, dtype=torch.long)
    for token, number in numbers.items():
        if number in special:
            continue
        if token in BYTES:
            found[number] = 1
        elif byte_level and token not in added:  # each of its characters stands for one byte
            found[number] = len(token)
        else:
            found[number] = len(token.replace(SPACE, " ").replace(END_OF_WORD, " ").encode())
    return found
