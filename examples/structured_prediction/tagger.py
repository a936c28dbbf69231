"""A causal model with scorers of actions on its hidden states: loss and decoding.

The probability of a sequence is the product over its actions. Each is drawn from one softmax over
what is allowed: copy, whose score is 0, open, and a close for every pair of open bracket and label.
Scorers have two layers. So has it Autoregressive Structured Prediction (arXiv 2210.14698, section
3, and its code), with two differences: one decoder reads the sentence and then writes it, where the
paper takes encoder and decoder; and entities may nest and cross, where the paper's are flat. Where
several brackets are right partners, the loss sums over them.

B sentences, T tokens, D hidden, N choices, K open brackets, L labels; C = 2 + K · L actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from actions import CLOSE, COPY, OPEN, Choice, Options, Pieces, State, right_sequence
from conll import Sentence, Span
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import DynamicCache

from disp_llm import InputError, TaskExample
from disp_llm.models.kv_cache import with_cache

WIDTH = 150
"""Of the scorers' hidden layers; that of the paper's code."""


class Scorers(nn.Module):
    """What turns hidden states into scores of actions."""

    def __init__(self, hidden: int, labels: Sequence[str]):
        super().__init__()
        self.labels = list(labels)
        self.open = nn.Sequential(nn.Linear(hidden, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        # One layer on a close and its bracket together, in two parts: each is computed once.
        self.closing = nn.Linear(hidden, WIDTH)
        self.opening = nn.Linear(hidden, WIDTH, bias=False)
        self.label = nn.Linear(WIDTH, len(labels))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.label.weight.device

    def forward(self, here: Tensor, opens: Tensor, allowed: Tensor) -> Tensor:
        """ln p of copy, of open, and of a close for every pair of bracket and label.

        Args:
            here: Hidden states that choose, (N, D).
            opens: Hidden states of open brackets, (N, K, D).
            allowed: Whether copy, open, and a close of each bracket may come, (N, 2 + K).

        Returns:
            (N, C)
        """
        pairs = self.label(gelu(self.closing(here)[:, None] + self.opening(opens)))
        opened = self.open(here)
        scores = torch.cat([torch.zeros_like(opened), opened, pairs.flatten(1)], 1)
        each = allowed[:, 2:].repeat_interleave(len(self.labels), 1)
        allowed = torch.cat([allowed[:, :2], each], 1)
        return scores.masked_fill(~allowed, -torch.inf).log_softmax(-1)


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
        base, batch = self.model.base_model, batch.to(self.scorers.device)
        hidden = base(input_ids=batch, use_cache=False).last_hidden_state.float()
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
        likelihoods = self._likelihoods(states, [choice.options for choice in choices])
        right = torch.zeros(likelihoods.shape, dtype=torch.bool)
        for row, choice in zip(right, choices, strict=True):
            if choice.action == CLOSE:
                closes = row[CLOSE:].view(-1, len(self.scorers.labels))
                label = self.scorers.labels.index(choice.label)
                closes[: len(choice.right), label] = torch.tensor(choice.right)
            else:
                row[choice.action] = True
        return -likelihoods.masked_fill(~right.to(states.device), -torch.inf).logsumexp(-1)

    def _likelihoods(self, states: Tensor, options: Sequence[Options]) -> Tensor:
        """ln p of every action: (T, D) -> (N, C)."""
        most = max(len(one.partners) for one in options)
        at = [one.position for one in options]
        opens = [[*one.partners, *[0] * (most - len(one.partners))] for one in options]
        allowed = [
            [one.copy, one.open, *(place < len(one.partners) for place in range(most))]
            for one in options
        ]
        device = states.device
        return self.scorers(
            states[torch.tensor(at, device=device)],
            states[torch.tensor(opens, dtype=torch.long, device=device)],
            torch.tensor(allowed, device=device),
        )

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
                action, partner, label = self._likeliest(states, state, len(tokens) - 1)
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
                state.close(state.partners[partner], label)
                tokens += pieces.closing
        return sorted(state.spans)

    def _likeliest(self, states: Tensor, state: State, position: int) -> tuple[int, int, str]:
        """The action that the hidden state there chooses, which partner, and which label."""
        place = int(self._likelihoods(states, [state.options(position)]).argmax())
        partner, label = divmod(max(place - CLOSE, 0), len(self.scorers.labels))
        return min(place, CLOSE), partner, self.scorers.labels[label]


class _Reader:
    """Hidden states of a growing sequence, of which only what has changed is read again."""

    def __init__(self, tagger: Tagger, cached: bool):
        self.base = tagger.model.base_model
        self.device = tagger.scorers.device
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
