"""How likely a model finds continuations of contexts: what a multiple-choice task asks for.

The answers to one question share its context, which is run once: they go on from its KV cache. As
where text is generated, contexts are padded on the left, behind an attention mask, so that nothing
stands between a context and what follows it; answers are padded on the right, where nothing sees
it. Figures are those of lm-evaluation-harness, which runs every context with every answer, up to
rounding; log-probabilities are float32 whatever the model computes in.

Q questions, R rows (answers), P tokens of the longest context, W of the longest row, N of all
continuations, D hidden, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.kv_cache import empty_cache, with_cache

TOKENS = 1024
"""Most tokens that run at once, padding included, unless one context or row alone has more."""

POSITIONS = 512
"""Most positions whose logits are computed at once."""

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context, and of what continues it."""

Answer = tuple[float, bool]
"""Σ ln p over a continuation, and whether each of its tokens is the likeliest one."""


@dataclass(frozen=True)
class Row:
    """One continuation."""

    place: int
    """Of its request."""
    tokens: Sequence[int]
    """What is read after the shared part: all but the last token."""
    wanted: Sequence[int]
    """The continuation, which the last logits predict."""


@dataclass(frozen=True)
class Question:
    """Continuations of one context."""

    shared: tuple[int, ...]
    """The context but its last token, whose logits are needed; empty where nothing is shared."""
    rows: list[Row]


@torch.no_grad()
def log_likelihoods(
    target: PrunableModel,
    requests: Sequence[Request],
    longest: int,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Of every request, in their order.

    Args:
        longest: tokens that the model can read; of more, the first ones are left out.
        on_request: called with (done, total) after every batch.
    """
    answers: dict[int, Answer] = {}
    # A state that sums up what was read, as hybrids have it, cannot be handed to several rows.
    shares = not target.family.has_states
    for batch in _batches(_questions(requests, longest, shares)):
        contexts = Contexts.run(target.base, [one.shared for one in batch])
        for rows in _parts(batch):
            wanted = torch.tensor([token for _, row in rows for token in row.wanted])
            found = _tokens(target, contexts.states(rows), wanted)
            lengths = [len(row.wanted) for _, row in rows]
            parts = (part.split(lengths) for part in found)
            for (_, row), values, likeliest in zip(rows, *parts, strict=True):
                answers[row.place] = float(values.sum()), bool(likeliest.all())
            on_request(len(answers), len(requests))
    return [answers[place] for place in range(len(requests))]


def _questions(requests: Sequence[Request], longest: int, shares: bool) -> list[Question]:
    """Requests by their context; what is too long, or alone, shares nothing.

    Args:
        shares: whether a context can be run once for several requests.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(requests):
        assert context
        assert 0 < len(continuation) <= longest
        by_context.setdefault(tuple(context), []).append(place)
    found = []
    for places in by_context.values():
        wholes = [[*requests[place][0], *requests[place][1]] for place in places]
        shared = len(requests[places[0]][0]) - 1 if shares and len(places) > 1 else 0
        if max(map(len, wholes)) > longest + 1:
            shared = 0
        rows = [
            Row(place, whole[-longest - 1 :][shared:-1], requests[place][1])
            for place, whole in zip(places, wholes, strict=True)
        ]
        found.append(Question(tuple(wholes[0][:shared]), rows))
    return found


def _batches(questions: list[Question]) -> Iterator[list[Question]]:
    """Questions with contexts of similar length, the longest first, so that memory runs out at once
    if at all; last those that share nothing."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda one: -len(one.shared)):
        tokens = len(batch[0].shared) * (len(batch) + 1) if batch else 0
        if batch and (tokens > TOKENS or bool(question.shared) != bool(batch[0].shared)):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


Owned = tuple[int, Row]
"""A row, and which question of its batch it belongs to."""


def _parts(batch: list[Question]) -> Iterator[list[Owned]]:
    """The rows of a batch, those of similar length together."""
    part: list[Owned] = []
    owned = [(owner, row) for owner, question in enumerate(batch) for row in question.rows]
    for owner, row in sorted(owned, key=lambda pair: -len(pair[1].tokens)):
        if part and len(part[0][1].tokens) * (len(part) + 1) > TOKENS:
            yield part
            part = []
        part.append((owner, row))
    yield part


@dataclass(frozen=True)
class Contexts:
    """The shared parts of a batch of questions, which have been run."""

    base: Any
    """The model without its head."""
    cache: DynamicCache | None
    """None where nothing is shared."""
    seen: Int[Tensor, "Q P"]
    """1 where there is a token, 0 where there is padding."""

    @classmethod
    def run(cls, base: Any, shared: list[tuple[int, ...]]) -> "Contexts":
        """Fills the cache."""
        width = max(map(len, shared))
        tokens = [[0] * (width - len(one)) + [1] * len(one) for one in shared]
        seen = torch.tensor(tokens, dtype=torch.long, device=base.device)
        if width == 0:
            return cls(base, None, seen)
        cache = empty_cache(base)
        padded = [[*[0] * (width - len(one)), *one] for one in shared]
        places = (seen.cumsum(1) - 1).clamp(min=0)
        options = {"attention_mask": seen, "position_ids": places} | with_cache(base, cache)
        base(input_ids=torch.tensor(padded, device=base.device), **options)
        return cls(base, cache, seen)

    def states(self, rows: list[Owned]) -> Float[Tensor, "N D"]:
        """Final hidden states of the positions that predict the continuations, one row's behind the
        other's; the head, which takes longest, is for these alone."""
        width = max(len(row.tokens) for _, row in rows)
        padded = [[*row.tokens, *[0] * (width - len(row.tokens))] for _, row in rows]
        hidden = self.base(
            input_ids=torch.tensor(padded, device=self.base.device), **self._behind(rows, width)
        ).last_hidden_state  # (R, W, D)
        scored = [
            of_row[len(row.tokens) - len(row.wanted) : len(row.tokens)]
            for of_row, (_, row) in zip(hidden, rows, strict=True)
        ]
        return torch.cat(scored)

    def _behind(self, rows: list[Owned], width: int) -> dict[str, Any]:
        """Arguments by which rows go on from their contexts, each from a copy."""
        if self.cache is None:
            return {"use_cache": False}
        owners = torch.tensor([owner for owner, _ in rows], device=self.base.device)
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(owners)
        seen = self.seen[owners]  # (R, P)
        own = torch.tensor([len(row.tokens) for _, row in rows], device=self.base.device)
        # Padding is given the last place of its row: there may be none behind it.
        places = torch.arange(width, device=self.base.device).minimum(own[:, None] - 1)
        return with_cache(self.base, cache) | {
            "attention_mask": torch.cat((seen, seen.new_ones(len(rows), width)), 1),
            "position_ids": seen.sum(1, keepdim=True) + places,
        }


def _tokens(
    target: PrunableModel, states: Float[Tensor, "N D"], wanted: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Of every token that is wanted ln p, and whether it is the likeliest; some at a time, since
    their logits are large."""
    values, likeliest = [], []
    for some, ids in zip(states.split(POSITIONS), wanted.split(POSITIONS), strict=True):
        logits, ids = target.head(some), ids.to(some.device)  # (·, V)
        values.append(logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1).cpu())
        likeliest.append((logits.argmax(-1) == ids).cpu())
    return torch.cat(values), torch.cat(likeliest)
