"""How likely a model finds continuations of contexts: what a multiple-choice task asks for.

The answers to one question share its context, which is run once: they go on from its KV cache. As
where text is generated, contexts are padded on the left, behind an attention mask, so that nothing
stands between a context and what follows it; answers are padded on the right, where nothing sees
it. Figures are those of lm-evaluation-harness, which runs every context with every answer, up to
rounding; log-probabilities are float32 whatever the model computes in.

Q questions, R rows (answers), P tokens of the longest context, W of the longest row, N of all
continuations, D hidden, V vocabulary.
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
    """Questions with contexts and rows of similar length; the largest first, so that memory runs
    out at once if at all. Those that share nothing are among themselves."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda q: (-len(q.shared), -q.longest)):
        grown = [*batch, question]
        width, rows = max(one.longest for one in grown), sum(len(one.rows) for one in grown)
        tokens = len(grown[0].shared) * len(grown) + width * rows
        if batch and (tokens > TOKENS or bool(question.shared) != bool(batch[0].shared)):
            yield batch
            grown = [question]
        batch = grown
    if batch:
        yield batch


def _states(base: Any, batch: list[Question], rows: list[Row]) -> Float[Tensor, "N D"]:
    """Final hidden states of the positions that predict the continuations of a batch, one row's
    behind the other's; the head, which takes longest, is for these alone."""
    behind = _after_contexts(base, batch)
    width = max(len(row.tokens) for row in rows)
    padded = [[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows]
    hidden = base(input_ids=torch.tensor(padded, device=base.device), **behind).last_hidden_state
    scored = [
        of_row[len(row.tokens) - len(row.wanted) : len(row.tokens)]
        for of_row, row in zip(hidden, rows, strict=True)
    ]
    return torch.cat(scored)


def _after_contexts(base: Any, batch: list[Question]) -> dict[str, Any]:
    """Runs the contexts of a batch; the arguments by which its rows go on from them."""
    lengths = [len(question.shared) for question in batch]
    longest = max(lengths)
    if longest == 0:
        return {"use_cache": False}
    padded = [[*[0] * (longest - len(one.shared)), *one.shared] for one in batch]
    shared = torch.tensor(padded, device=base.device)  # (Q, P)
    seen = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=base.device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    cache = empty_cache(base)
    behind = with_cache(base, cache)
    base(input_ids=shared, attention_mask=seen, position_ids=positions, **behind)
    owners = [place for place, question in enumerate(batch) for _ in question.rows]
    cache.batch_select_indices(torch.tensor(owners, device=base.device))  # (R, P)
    widths = [len(row.tokens) for question in batch for row in question.rows]
    width = max(widths)
    read = torch.ones(len(owners), width, dtype=seen.dtype, device=base.device)
    places = [  # those of padding exist too, whatever follows the model's last position
        [lengths[owner] + min(place, own - 1) for place in range(width)]
        for owner, own in zip(owners, widths, strict=True)
    ]
    return behind | {
        "attention_mask": torch.cat((seen[owners], read), 1),  # (R, P + W)
        "position_ids": torch.tensor(places, device=base.device),
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
