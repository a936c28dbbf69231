"""How likely a model finds continuations of contexts: what a multiple-choice task asks for.

The answers to one question share its context, which is run once: they go on from its KV cache. All
contexts of a batch have the same length, so that nothing stands between a context and what follows
it, and a model needs no attention mask; answers are padded on the right, where nothing sees it.
Figures are those of lm-evaluation-harness, which runs every context with every answer, up to
rounding; log-probabilities are float32 whatever the model computes in.

Q questions, R rows (answers), P tokens of a context but its last, N tokens of all continuations, D
hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.kv_cache import empty_cache, with_cache

TOKENS = 2048
"""Most tokens of a batch, padding included, unless one question alone has more."""

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

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(len(row.tokens) for row in self.rows)


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
    for batch in _batches(_questions(requests, longest)):
        rows = [row for question in batch for row in question.rows]
        wanted = torch.tensor([token for row in rows for token in row.wanted])
        found = _tokens(target, _states(target.model.base_model, batch, rows), wanted)
        lengths = [len(row.wanted) for row in rows]
        for row, values, likeliest in zip(
            rows, *(part.split(lengths) for part in found), strict=True
        ):
            answers[row.place] = float(values.sum()), bool(likeliest.all())
        on_request(len(answers), len(requests))
    return [answers[place] for place in range(len(requests))]


def _questions(requests: Sequence[Request], longest: int) -> list[Question]:
    """Requests by their context; what is too long, or alone, shares nothing."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(requests):
        assert context
        assert 0 < len(continuation) <= longest
        by_context.setdefault(tuple(context), []).append(place)
    found = []
    for places in by_context.values():
        wholes = [[*requests[place][0], *requests[place][1]] for place in places]
        shared = len(requests[places[0]][0]) - 1 if len(places) > 1 else 0
        if max(map(len, wholes)) > longest + 1:
            shared = 0
        rows = [
            Row(place, whole[-longest - 1 :][shared:-1], requests[place][1])
            for place, whole in zip(places, wholes, strict=True)
        ]
        found.append(Question(tuple(wholes[0][:shared]), rows))
    return found


def _batches(questions: list[Question]) -> Iterator[list[Question]]:
    """Questions whose shared parts have the same length, and whose rows have similar ones; the
    largest first, so that memory runs out at once if at all."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda q: (-len(q.shared), -q.longest)):
        if batch:
            shared, width = len(batch[0].shared), batch[0].longest
            rows = sum(len(one.rows) for one in (*batch, question))
            tokens = shared * (len(batch) + 1) + width * rows
            if len(question.shared) != shared or tokens > TOKENS:
                yield batch
                batch = []
        batch.append(question)
    if batch:
        yield batch


def _states(base: Any, batch: list[Question], rows: list[Row]) -> Float[Tensor, "N D"]:
    """Final hidden states of the positions that predict the continuations of a batch, one row's
    behind the other's; the head, which takes longest, is for these alone."""
    device, behind = base.device, {"use_cache": False}
    if batch[0].shared:
        shared = torch.tensor([question.shared for question in batch], device=device)  # (Q, P)
        cache = empty_cache(base)
        behind = with_cache(base, cache)
        base(input_ids=shared, **behind)
        owners = [place for place, question in enumerate(batch) for _ in question.rows]
        cache.batch_select_indices(torch.tensor(owners, device=device))  # (R, P)
    width = max(len(row.tokens) for row in rows)
    padded = [[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows]
    hidden = base(input_ids=torch.tensor(padded, device=device), **behind).last_hidden_state
    scored = [
        of_row[len(row.tokens) - len(row.wanted) : len(row.tokens)]
        for of_row, row in zip(hidden, rows, strict=True)
    ]
    return torch.cat(scored)


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
