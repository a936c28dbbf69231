"""Log-likelihoods of continuations of contexts, which multiple-choice tasks ask for.

The answers to one question share its context: it runs once, and they continue from its KV cache. On
a CPU this takes a third to a half of the time of lm-evaluation-harness, which runs every context
with every answer. Contexts are left-padded under an attention mask, as for generation. Answers are
padded on the right, where no token sees the padding. Log-probabilities are float32.

R rows (continuations), P tokens of the longest context, W of the longest row, N of all
continuations, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from disp_llm.config.errors import InputError
from disp_llm.evaluation.sample import left_padded
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.kv_cache import with_cache
from disp_llm.runs.progress import Ticks, unwatched

TOKENS = 2048
"""Most tokens of a batch, padding included, unless one context and row alone have more."""

CACHED = 2**14
"""Most tokens in the KV cache at once: each row holds a copy of its context's cache."""

POSITIONS = 512
"""Most positions whose logits are computed at once."""

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""

Answer = tuple[float, bool]
"""Σ ln p over a continuation, and whether greedy decoding would produce it."""


@dataclass(frozen=True)
class Row:
    """One continuation."""

    place: int
    """Index of its request."""
    shared: tuple[int, ...]
    """The context without its last token, whose logits are needed; empty if nothing is shared."""
    tokens: Sequence[int]
    """Tokens of context and continuation after `shared`, without the last one."""
    wanted: Sequence[int]
    """The continuation: targets of the last logits."""


@torch.no_grad()
def log_likelihoods(
    target: PrunableModel,
    requests: Sequence[Request],
    longest: int,
    on_request: Ticks = unwatched,
) -> list[Answer]:
    """Returns the answer to every request, in their order.

    Args:
        longest: tokens that the model can read; longer requests lose their first tokens.

    Raises:
        InputError: an answer alone is longer.
    """
    answers: dict[int, Answer] = {}
    # Rows cannot share the recurrent state of a hybrid as they share a KV cache.
    for rows in _batches(_rows(requests, longest, shares=not target.family.has_states)):
        wanted = torch.tensor([token for row in rows for token in row.wanted])
        found = _tokens(target, _states(target.base, rows), wanted)
        parts = (part.split([len(row.wanted) for row in rows]) for part in found)
        for row, values, likeliest in zip(rows, *parts, strict=True):
            answers[row.place] = float(values.sum()), bool(likeliest.all())
        on_request(len(answers), len(requests))
    return [answers[place] for place in range(len(requests))]


def _rows(requests: Sequence[Request], longest: int, shares: bool) -> list[Row]:
    """Returns a row for every request. A context is shared if it has several requests that fit."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(requests):
        assert context
        assert continuation
        if len(continuation) > longest:
            raise InputError(
                f"have an answer of {len(continuation)} tokens, and the model reads {longest}",
                field="tasks",
                hint="leave out the task that has it",
            )
        by_context.setdefault(tuple(context), []).append(place)
    rows = []
    for context, places in by_context.items():
        most = max(len(requests[place][1]) for place in places)
        fits = len(context) + most <= longest + 1
        shared = context[:-1] if shares and fits and len(places) > 1 else ()
        for place in places:
            whole = [*context, *requests[place][1]][-longest - 1 :]
            rows.append(Row(place, shared, whole[len(shared) : -1], requests[place][1]))
    return rows


def _batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Yields batches of rows with contexts of similar length. The longest come first, so that
    memory runs out at once if at all; rows that share nothing come last."""
    batch: list[Row] = []
    contexts: set[tuple[int, ...]] = set()
    for row in sorted(rows, key=lambda row: (-len(row.shared), row.shared, -len(row.tokens))):
        widest = max(len(one.tokens) for one in (*batch, row))
        longest, rows_now = len((batch or [row])[0].shared), len(batch) + 1
        run = longest * len(contexts | {row.shared}) + rows_now * widest
        full = run > TOKENS or rows_now * longest > CACHED
        if batch and (full or bool(row.shared) != bool(batch[0].shared)):
            yield batch
            batch, contexts = [], set()
        batch.append(row)
        contexts.add(row.shared)
    if batch:
        yield batch


def _states(base: Any, rows: list[Row]) -> Float[Tensor, "N D"]:
    """Returns the final hidden states that predict the continuations, row after row. Only these
    go through the head, which takes longest."""
    width = max(len(row.tokens) for row in rows)
    padded = [[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows]
    options = _behind_contexts(base, rows, width) if rows[0].shared else {"use_cache": False}
    tokens = torch.tensor(padded, device=base.device)
    hidden = base(input_ids=tokens, **options).last_hidden_state  # (R, W, D)
    ends = [(len(row.tokens) - len(row.wanted), len(row.tokens)) for row in rows]
    return torch.cat(
        [of_row[first:last] for of_row, (first, last) in zip(hidden, ends, strict=True)]
    )


def _behind_contexts(base: Any, rows: list[Row], width: int) -> dict[str, Any]:
    """Runs every context once. Returns the arguments with which each row continues its own."""
    number = {shared: i for i, shared in enumerate(dict.fromkeys(row.shared for row in rows))}
    contexts, seen = left_padded(list(number), base.device)  # (·, P)
    places = (seen.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=base.config)
    options = {"attention_mask": seen, "position_ids": places} | with_cache(base, cache)
    base(input_ids=contexts, **options)
    owners = torch.tensor([number[row.shared] for row in rows], device=base.device)
    cache.batch_select_indices(owners)
    seen = seen[owners]  # (R, P)
    own = torch.tensor([len(row.tokens) for row in rows], device=base.device)
    # Padding repeats the last position of its row: the model may have no further ones.
    places = torch.arange(width, device=base.device).minimum(own[:, None] - 1)
    return with_cache(base, cache) | {
        "attention_mask": torch.cat((seen, seen.new_ones(len(rows), width)), 1),
        "position_ids": seen.sum(1, keepdim=True) + places,
    }


def _tokens(
    target: PrunableModel, states: Float[Tensor, "N D"], wanted: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Returns ln p of every wanted token, and whether it is the likeliest. Takes `POSITIONS` at a
    time, since logits are large."""
    values, likeliest = [], []
    for some, ids in zip(states.split(POSITIONS), wanted.split(POSITIONS), strict=True):
        logits, ids = target.head(some), ids.to(some.device)  # (·, V)
        values.append(logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1).cpu())
        likeliest.append((logits.argmax(-1) == ids).cpu())
    return torch.cat(values), torch.cat(likeliest)
