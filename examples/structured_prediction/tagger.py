"""A causal model with scorers of actions on its hidden states: loss and decoding.

The probability of a sequence is the product over its choices of p(action), and for a close of
p(partner) · p(label | partner), each a softmax over what is allowed. Where several brackets are
right partners, the loss sums over them.

B sentences, T tokens, D hidden, N choices, A actions, K partners, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from actions import CLOSE, COPY, OPEN, Bracket, Choice, Pieces, State, right_sequence
from conll import Sentence, Span
from torch import Tensor, nn
from transformers import DynamicCache

from disp_llm import InputError, TaskExample
from disp_llm.models.kv_cache import with_cache

WIDTH = 128
"""Of what partners and labels are scored by."""


class Scorers(nn.Module):
    """What turns hidden states into scores of actions, partners and labels."""

    def __init__(self, hidden: int, labels: Sequence[str]):
        super().__init__()
        self.labels = list(labels)
        self.action = nn.Linear(hidden, 3)
        self.closing = nn.Linear(hidden, WIDTH)
        self.opening = nn.Linear(hidden, WIDTH)
        self.label = nn.Sequential(
            nn.Linear(2 * hidden, WIDTH), nn.GELU(), nn.Linear(WIDTH, len(labels))
        )

    def actions(self, states: Tensor, allowed: Tensor) -> Tensor:
        """ln p of every action: (N, D) and (N, A) -> (N, A)."""
        return self.action(states).masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def partners(self, close: Tensor, opens: Tensor) -> Tensor:
        """ln p of every partner of one close: (D) and (K, D) -> (K)."""
        scores = self.opening(opens) @ self.closing(close) / WIDTH**0.5
        return scores.log_softmax(-1)

    def labels_of(self, close: Tensor, opens: Tensor) -> Tensor:
        """ln p of every label beside each partner: (D) and (K, D) -> (K, L)."""
        both = torch.cat([opens, close.expand_as(opens)], -1)
        return self.label(both).log_softmax(-1)


@dataclass(frozen=True)
class Tagger:
    """Writes sentences again with brackets around their entities."""

    model: Any
    tokenizer: Any
    scorers: Scorers

    def pieces(self, sentence: Sentence) -> Pieces:
        """The token ids of a sentence, word for word.

        Raises:
            InputError: it is longer than what the model can read.
        """
        words = [self._ids(" " + word) for word in sentence.words]
        opening, closing, end = map(self._ids, (" [", " ]", "\n"))
        bos = self.tokenizer.bos_token_id
        prompt = [*([] if bos is None else [bos]), *(token for w in words for token in w), *end]
        most = getattr(self.model.config, "max_position_embeddings", None)
        brackets = len(words) * (len(opening) + len(closing))
        if most and 2 * len(prompt) + brackets > most:
            raise InputError(
                f"has {len(prompt)} tokens, too many for the model's {most} positions",
                field=sentence.place,
                hint="split it",
            )
        return Pieces(tuple(prompt), tuple(map(tuple, words)), tuple(opening), tuple(closing))

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids or [self.tokenizer.unk_token_id or 0]  # a word that the tokenizer drops

    def loss(self, sentences: Sequence[Sentence]) -> Tensor:
        """−ln p of the right structures, the mean over all choices."""
        written = [self._written(sentence) for sentence in sentences]
        longest = max(len(tokens) for tokens, _ in written)
        batch = torch.zeros(len(written), longest, dtype=torch.long)
        for row, (tokens, _) in zip(batch, written, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        device = self.scorers.action.weight.device
        base = self.model.base_model
        hidden = base(input_ids=batch.to(device), use_cache=False).last_hidden_state.float()
        parts = [
            self._losses(states, choices)
            for states, (_, choices) in zip(hidden, written, strict=True)
        ]
        return torch.cat(parts).mean()

    def example(self, sentence: Sentence) -> TaskExample:
        """A sentence as `disp_llm.prune` learns from it: its loss is that of its choices."""
        tokens, choices = self._written(sentence)

        def loss(states: Tensor) -> Tensor:
            return self._losses(states, choices).mean()

        return TaskExample(tuple(tokens), loss, len(choices), sentence.place)

    def _written(self, sentence: Sentence) -> tuple[list[int], list[Choice]]:
        try:
            return right_sequence(self.pieces(sentence), sentence.spans)
        except ValueError as error:
            raise InputError(str(error), field=sentence.place, hint="leave it out") from error

    def _losses(self, states: Tensor, choices: list[Choice]) -> Tensor:
        """(T, D) -> (N)."""
        device = states.device
        at = torch.tensor([choice.position for choice in choices], device=device)
        allowed = torch.tensor([choice.allowed for choice in choices], device=device)
        taken = torch.tensor([choice.action for choice in choices], device=device)
        values = self.scorers.actions(states[at], allowed).gather(1, taken[:, None]).squeeze(1)
        more = torch.zeros_like(values)
        for i, choice in enumerate(choices):
            if choice.action == CLOSE:
                right = torch.tensor(choice.right, device=device)
                opens = states[torch.tensor(choice.partners, device=device)]
                close, label = states[choice.position], self.scorers.labels.index(choice.label)
                joint = self.scorers.partners(close, opens)
                joint = joint + self.scorers.labels_of(close, opens)[:, label]
                more[i] = joint[right].logsumexp(0)
        return -(values + more)

    @torch.no_grad()
    def tag(self, sentence: Sentence, cached: bool = True) -> list[Span]:
        """The likeliest action again and again, until the sentence is written.

        Most actions are copies, so the words that are left are read at once; the first action that
        is none takes back what was read behind it.

        Args:
            cached: keep what was read in the KV cache, where it can be taken back; the result is
                the same without.
        """
        pieces = self.pieces(sentence)
        reader = _Reader(self, cached)
        state = State(len(pieces.words))
        tokens = list(pieces.prompt)
        while not state.is_done:
            ahead = [token for word in pieces.words[state.word :] for token in word]
            states = reader.read([*tokens, *ahead])
            while not state.is_done:
                action = self._likeliest(states[len(tokens) - 1], state)
                if action != COPY:
                    break
                tokens += pieces.words[state.word]
                state.copy()
            else:
                break
            if action == OPEN:
                tokens += pieces.opening
                state.opens(len(tokens) - 1)
            else:
                state.close(*self._partner(states, len(tokens) - 1, state.partners))
                tokens += pieces.closing
        return sorted(state.spans)

    def _likeliest(self, hidden: Tensor, state: State) -> int:
        allowed = torch.tensor([state.allowed], device=hidden.device)
        return int(self.scorers.actions(hidden[None], allowed).argmax())

    def _partner(
        self, states: Tensor, position: int, partners: list[Bracket]
    ) -> tuple[Bracket, str]:
        close = states[position]
        opens = states[[bracket.position for bracket in partners]]
        joint = self.scorers.partners(close, opens)[:, None] + self.scorers.labels_of(close, opens)
        place = int(joint.argmax())
        count = len(self.scorers.labels)
        return partners[place // count], self.scorers.labels[place % count]


class _Reader:
    """Hidden states of a growing sequence, of which only what has changed is read again."""

    def __init__(self, tagger: Tagger, cached: bool):
        self.base = tagger.model.base_model
        self.device = tagger.scorers.action.weight.device
        self.cache = DynamicCache() if cached and _keeps_all(tagger.model.config) else None
        self.seen: list[int] = []
        self.states = torch.empty(0)

    def read(self, tokens: list[int]) -> Tensor:
        """(T, D), float32."""
        same = 0
        options: dict[str, Any] = {"use_cache": False}
        if self.cache is not None:
            pairs = zip(self.seen, tokens, strict=False)
            same = next((i for i, (old, new) in enumerate(pairs) if old != new), len(self.seen))
            if same < len(self.seen):
                self.cache.crop(same - len(self.seen))  # so many from the end
            options = with_cache(self.base, self.cache)
        new = torch.tensor([tokens[same:]], device=self.device)
        hidden = self.base(input_ids=new, **options).last_hidden_state[0].float()
        self.states = torch.cat([self.states[:same].to(hidden), hidden])
        self.seen = list(tokens)
        return self.states


def _keeps_all(config: Any) -> bool:
    """Whether every layer attends to all that was read, so that the end of it can be taken back."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return set(kinds) == {"full_attention"} and not getattr(config, "sliding_window", None)
