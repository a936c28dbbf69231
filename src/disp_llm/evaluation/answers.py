"""What a model answers to the prompts of examples, always taking the likeliest token, and how good
that is.

Prompts of similar length are answered together, padded on the left behind an attention mask; an
answer ends with EOS, with what else the model ends text with, or a quarter beyond the longest
answer of the examples.
"""

import contextlib
import math
import statistics
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.schema import Amount, Size
from disp_llm.data.example_tokens import ExampleStream, Tokenized
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import positions_of
from disp_llm.runs.scores import Share

TOKENS = 4096
"""Most tokens of prompts that are answered together, padding included."""

SHORT = 5
"""Most words of an answer that is right or wrong as a whole."""


@dataclass(frozen=True)
class AnswerScore:
    """What a model's answers score."""

    metric: str
    """`exact_match`, or `f1` of words where some answers are longer than `SHORT`."""
    score: Share
    score_stderr: Amount | None
    """None where there is a single answer."""
    answers: Size
    """How many were written."""


def scored(answers: Sequence[str], references: Sequence[str]) -> AnswerScore:
    """What answers score, by exact match where all references are short."""
    short = all(len(reference.split()) <= SHORT for reference in references)
    values = (exact_match if short else f1)(answers, references)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    name = "exact_match" if short else "f1"
    return AnswerScore(name, statistics.fmean(values), error, len(values))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the answer is the reference, but for white space at either end."""
    return [float(a.strip() == r.strip()) for a, r in zip(answers, references, strict=True)]


def f1(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Harmonic mean of the share of the answer's words that the reference has and of the
    reference's that the answer has, each counted as often as both have it; case and punctuation do
    not count (as for SQuAD, arXiv 1606.05250, which drops articles besides)."""
    return [_overlap(_words(a), _words(r)) for a, r in zip(answers, references, strict=True)]


def _words(text: str) -> Counter[str]:
    stripped = (word.strip(string.punctuation) for word in text.casefold().split())
    return Counter(word for word in stripped if word)


def _overlap(answer: Counter[str], reference: Counter[str]) -> float:
    total = answer.total() + reference.total()
    return 2 * (answer & reference).total() / total if total else 1.0


@contextlib.contextmanager
def likeliest(model: PreTrainedModel) -> Iterator[Any]:
    """While the context lasts, `generate`, which this gives, takes the likeliest token: a model may
    come with penalties, beams and tokens that it must not write, which `do_sample=False` leaves as
    they are, as do settings that are handed to `generate`."""
    own: Any = model.generation_config
    ends = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    try:
        yield model.generate
    finally:
        model.generation_config = own


@torch.no_grad()
def written_answers(
    target: PrunableModel,
    tokenizer: Any,
    stream: ExampleStream,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """An answer to every example, in their order.

    Args:
        on_answer: called with (done, total) after every batch.
    """
    most_tokens = _most_tokens(stream)
    _require_room(target, stream, most_tokens)
    answers: dict[int, str] = {}
    for batch in _batches(stream):
        made = _generated(target, tokenizer, [one for _, one in batch], most_tokens)
        for (place, _), tokens in zip(batch, made, strict=True):
            answers[place] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        on_answer(len(answers), len(stream.examples))
    return [answers[place] for place in range(len(stream.examples))]


def _most_tokens(stream: ExampleStream) -> int:
    """Of an answer: a quarter more than the longest of the examples has."""
    longest = max(len(one.tokens) - len(one.prompt) for one in stream.examples)
    return longest + (longest + 3) // 4


def _require_room(target: PrunableModel, stream: ExampleStream, most_tokens: int) -> None:
    one = max(stream.examples, key=lambda example: len(example.prompt))
    most = positions_of(target.model.config)
    if most and len(one.prompt) + most_tokens > most:
        raise InputError(
            f"{one.place}, has {len(one.prompt):,} tokens before the answer, which may take "
            f"{most_tokens:,}, and the model has {most:,} positions",
            field=stream.field,
            hint="shorten it",
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
