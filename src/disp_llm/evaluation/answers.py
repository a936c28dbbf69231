"""What a model answers to the prompts of examples, always taking the likeliest token.

Prompts of similar length are answered together, padded on the left behind an attention mask; an
answer ends with EOS, with what else the model ends text with, or at the most tokens that it may
have.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from disp_llm.config.errors import InputError
from disp_llm.data.example_tokens import ExampleStream, Tokenized
from disp_llm.evaluation.likeliest import likeliest
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import positions_of

TOKENS = 4096
"""Most tokens of prompts that are answered together, padding included."""


@torch.no_grad()
def written_answers(
    target: PrunableModel,
    tokenizer: Any,
    stream: ExampleStream,
    most_tokens: int = 0,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """An answer to every example, in their order.

    Args:
        most_tokens: of an answer; 0 = a quarter more than the longest that the examples have.
        on_answer: called with (done, total) after every batch.

    Raises:
        InputError: a prompt and its answer are longer than what the model was made for.
    """
    longest = max(len(one.tokens) - len(one.prompt) for one in stream.examples)
    most_tokens = most_tokens or longest + (longest + 3) // 4
    _require_room(target, stream, most_tokens)
    answers: dict[int, str] = {}
    for batch in _batches(stream):
        made = _generated(target, tokenizer, [one for _, one in batch], most_tokens)
        for (place, _), tokens in zip(batch, made, strict=True):
            answers[place] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        on_answer(len(answers), len(stream.examples))
    return [answers[place] for place in range(len(stream.examples))]


def _require_room(target: PrunableModel, stream: ExampleStream, most_tokens: int) -> None:
    one = max(stream.examples, key=lambda example: len(example.prompt))
    most = positions_of(target.model.config)
    if most and len(one.prompt) + most_tokens > most:
        raise InputError(
            f"{one.place}, has {len(one.prompt):,} tokens before the answer, which may take "
            f"{most_tokens:,}, and the model has {most:,} positions",
            field=stream.field,
            hint="shorten it, or give fewer `answer_tokens`",
        )


def _batches(stream: ExampleStream) -> Iterator[list[tuple[int, Tokenized]]]:
    """Examples with their places, those with the longest prompts first, so that memory runs out at
    once if at all."""
    batch: list[tuple[int, Tokenized]] = []
    for place, one in sorted(enumerate(stream.examples), key=lambda pair: -len(pair[1].prompt)):
        full = batch and len(batch[0][1].prompt) * (len(batch) + 1) > TOKENS
        if full:
            yield batch
            batch = []
        batch.append((place, one))
    yield batch


def _generated(
    target: PrunableModel, tokenizer: Any, examples: list[Tokenized], most_tokens: int
) -> list[list[int]]:
    prompts = [example.prompt for example in examples]
    width = max(map(len, prompts))
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    padded = torch.full((len(prompts), width), filler)
    seen = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, width - len(prompt) :] = prompt
        seen[row, width - len(prompt) :] = 1
    ends = _ends(target, tokenizer)
    with likeliest(target.model) as generate:
        made = generate(
            padded.to(target.device),
            attention_mask=seen.to(target.device),
            max_new_tokens=most_tokens,
            eos_token_id=ends or None,
            pad_token_id=filler,
        )
    return [_until(row, ends) for row in made[:, width:].tolist()]


def _ends(target: PrunableModel, tokenizer: Any) -> list[int]:
    """Tokens that end an answer."""
    config = getattr(target.model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    ends = [found] if isinstance(found, int) else list(found or ())
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return list(dict.fromkeys(ends))


def _until(tokens: list[int], ends: list[int]) -> list[int]:
    """What stands before the first of these tokens."""
    place = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:place]
