"""How likely a model finds continuations of contexts: what a multiple-choice task asks for.

The answers to one question share its context, which is run once: they go on from its KV cache. All
contexts of a batch have the same length, so that nothing stands between a context and what follows
it, and a model needs no attention mask; answers are padded on the right, where nothing sees it.
Figures are those of lm-evaluation-harness, which runs every context with every answer, up to
rounding; log-probabilities are float32 whatever the model computes in.

Q questions, R rows (answers), P tokens of a context but its last, W tokens of the longest row, V
vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.models.kv_cache import empty_cache, with_cache

TOKENS = 2048
"""Most tokens of a batch, padding included, unless one question alone has more."""

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
    model: PreTrainedModel,
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
        logits = _logits(model, batch)
        for row, of_row in zip(rows, logits, strict=True):
            answers[row.place] = _answer(of_row, row.wanted)
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


def _logits(model: PreTrainedModel, batch: list[Question]) -> list[Float[Tensor, "_ V"]]:
    """For every row of a batch the logits that predict its continuation."""
    behind: dict[str, Any] = {"use_cache": False}
    if batch[0].shared:
        shared = torch.tensor([question.shared for question in batch], device=model.device)
        cache = empty_cache(model)
        behind = with_cache(model, cache)
        model(shared, logits_to_keep=1, **behind)  # (Q, P)
        owners = [place for place, one in enumerate(batch) for _ in one.rows]
        cache.batch_select_indices(torch.tensor(owners, device=model.device))
    rows = [row for question in batch for row in question.rows]
    width = max(len(row.tokens) for row in rows)
    padded = torch.tensor(
        [[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows], device=model.device
    )
    first = min(len(row.tokens) - len(row.wanted) for row in rows)
    logits = model(padded, logits_to_keep=width - first, **behind).logits  # (R, W - first, V)
    ends = [len(row.tokens) - first for row in rows]
    return [
        of_row[end - len(row.wanted) : end]
        for of_row, row, end in zip(logits, rows, ends, strict=True)
    ]


def _answer(logits: Float[Tensor, "C V"], wanted: Sequence[int]) -> Answer:
    """Of one continuation of C tokens."""
    ids = torch.tensor(wanted, device=logits.device)
    likelihoods = logits.float().log_softmax(-1).gather(1, ids[:, None])
    return float(likelihoods.sum()), bool((logits.argmax(-1) == ids).all())
