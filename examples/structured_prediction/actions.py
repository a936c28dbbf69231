"""A sentence with its entities as a sequence of actions, each the next word or a bracket.

    Obama visited New York      ->  [ Obama ] visited [ New York ]

Before every word, and at the end, one action after the other is chosen: **copy** the word, **open**
a span before it, or **close** a span, which also says *which* open bracket is its partner and
*which label* the span has (Autoregressive Structured Prediction with Language Models, arXiv
2210.14698, section 3). What may come next follows from what stands there:

- copy, while there are words;
- open, while there are words, unless `DEPTH` brackets are open or there are as many as words;
- close, if a bracket is open that has a word behind it; brackets that open at one word come last,
  so that a structure has one order of actions.

At the end of the words all that is open is closed, then the sequence ends by itself. Every sequence
of such actions is a set of spans with at least one word each, and every set of spans up to that
depth and number, crossing ones too, is such a sequence.
"""

from dataclasses import dataclass, field

from conll import Span

COPY, OPEN, CLOSE = range(3)
"""In the order of their scores; closes come last, one for every pair of bracket and label."""

DEPTH = 4
"""Most brackets that are open at one time."""


@dataclass(frozen=True)
class Bracket:
    """One that is open."""

    word: int
    """The word that it stands before."""
    position: int
    """Of its token in what the model reads."""


@dataclass(frozen=True)
class Options:
    """What may come next."""

    position: int
    """The token whose hidden state chooses."""
    copy: bool
    open: bool
    partners: tuple[int, ...]
    """Positions of the brackets that can be closed."""


@dataclass
class State:
    """How far a sequence of actions has come."""

    words: int
    """How many the sentence has."""
    word: int = 0
    """How many were copied."""
    open: list[Bracket] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be chosen."""
        return self.word == self.words and not self.open

    @property
    def partners(self) -> list[Bracket]:
        """Brackets that can be closed here; none once one was opened before this word."""
        fits = [bracket for bracket in self.open if bracket.word < self.word]
        return fits if len(fits) == len(self.open) else []

    @property
    def allowed(self) -> tuple[bool, bool, bool]:
        """Whether copy, open and close may come next."""
        more = self.word < self.words
        room = len(self.open) < DEPTH and len(self.open) + len(self.spans) < self.words
        return more, more and room, bool(self.partners)

    def options(self, position: int) -> Options:
        """What may come next, by the hidden state of the token at that position."""
        copy, opened, _ = self.allowed
        return Options(position, copy, opened, tuple(one.position for one in self.partners))

    def copy(self) -> None:
        """Takes the next word."""
        assert self.allowed[COPY]
        self.word += 1

    def opens(self, position: int) -> None:
        """Opens a bracket, whose token has that position."""
        assert self.allowed[OPEN]
        self.open.append(Bracket(self.word, position))

    def close(self, partner: Bracket, label: str) -> None:
        """Closes a bracket: there is one more span."""
        assert partner in self.partners
        self.open.remove(partner)
        self.spans.append(Span(partner.word, self.word, label))


@dataclass(frozen=True)
class Choice:
    """One action that was right, and what else it could have been."""

    options: Options
    action: int
    right: tuple[bool, ...] = ()
    """Of a close, which of the partners are right: all that give the same span."""
    label: str = ""


@dataclass(frozen=True)
class Pieces:
    """Token ids of what a sequence consists of."""

    prompt: tuple[int, ...]
    """The sentence, as it is read before it is written again."""
    words: tuple[tuple[int, ...], ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]


def right_sequence(pieces: Pieces, spans: tuple[Span, ...]) -> tuple[list[int], list[Choice]]:
    """The tokens of a sentence with brackets, and every choice on the way.

    Raises:
        ValueError: more spans are open at one word than `DEPTH`, or there are more than words.
    """
    tokens, choices = list(pieces.prompt), []
    state = State(len(pieces.words))

    def chosen(action: int, *more) -> None:
        choices.append(Choice(state.options(len(tokens) - 1), action, *more))

    for word in range(len(pieces.words) + 1):
        for span in sorted((s for s in spans if s.end == word), key=lambda s: -s.start):
            partners = state.partners
            right = tuple(bracket.word == span.start for bracket in partners)
            chosen(CLOSE, right, span.label)
            tokens += pieces.closing
            state.close(partners[right.index(True)], span.label)
        if word == len(pieces.words):
            break
        for _ in sorted(s for s in spans if s.start == word):
            if not state.allowed[OPEN]:
                said = f"more than {DEPTH} spans are open at word {word + 1}"
                raise ValueError(f"{said}, or there are more spans than words")
            chosen(OPEN)
            tokens += pieces.opening
            state.opens(len(tokens) - 1)
        chosen(COPY)
        tokens += pieces.words[word]
        state.copy()
    assert state.is_done
    assert sorted(state.spans) == sorted(spans)
    return tokens, choices
