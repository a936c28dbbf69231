"""Answers the prompts of examples by greedy decoding, and scores the answers.

Prompts of similar length form a batch, left-padded under an attention mask. An answer ends at EOS,
at another end token of the model's generation config, at a special token that ends an example's own
answer, or at 1.25 times the length of the longest such answer.
"""

import statistics
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch

from disp_llm.config.errors import InputError
from disp_llm.data.example_tokens import ExampleStream, Tokenized
from disp_llm.evaluation.sample import left_padded, likeliest
from disp_llm.evaluation.tasks import error_of_mean
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import positions_of
from disp_llm.runs.progress import Ticks, unwatched

TOKENS = 4096
"""Most prompt tokens of a batch, padding included, unless one prompt alone has more."""

SHORT = 5
"""Most words of a reference that an answer has to match exactly."""


def scored(answers: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Returns `{metric, score, score_stderr, answers}`: mean exact match if all references are
    short, else mean `f1`. The standard error is None for a single answer."""
    short = all(len(reference.split()) <= SHORT for reference in references)
    pairs = list(zip(answers, references, strict=True))
    values = [float(a.strip() == r.strip()) if short else f1(a, r) for a, r in pairs]
    return {
        "metric": "exact_match" if short else "f1",
        "score": statistics.fmean(values),
        "score_stderr": error_of_mean(values),
        "answers": len(values),
    }


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall, over multisets of words. Ignores case and the
    punctuation around words (as SQuAD, arXiv 1606.05250, which also drops articles)."""
    ours, wanted = _words(answer), _words(reference)
    total = ours.total() + wanted.total()
    return 2 * (ours & wanted).total() / total if total else 1.0


def _words(text: str) -> Counter[str]:
    stripped = (word.strip(string.punctuation) for word in text.casefold().split())
    return Counter(word for word in stripped if word)


@torch.no_grad()
def written_answers(
    target: PrunableModel,
    tokenizer: Any,
    stream: ExampleStream,
    on_answer: Ticks = unwatched,
) -> list[str]:
    """Returns the answer to every example, in their order.

    Raises:
        InputError: the model has too few positions for a prompt and its answer.
    """
    longest = max(len(one.tokens) - len(one.prompt) for one in stream.examples)
    most_tokens = longest + (longest + 3) // 4
    one = max(stream.examples, key=lambda example: len(example.prompt))
    positions = positions_of(target.model.config)
    if positions and len(one.prompt) + most_tokens > positions:
        raise InputError(
            f"{one.place}, has {len(one.prompt):,} tokens before the answer, which may take "
            f"{most_tokens:,}, and the model has {positions:,} positions",
            field=stream.field,
            hint="shorten it",
        )
    own = getattr(target.model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())} - {None}
    known = tokenizer.added_tokens_decoder
    last = {int(example.tokens[-1]) for example in stream.examples}
    ends |= {token for token in last if token in known and known[token].special}
    answers: dict[int, str] = {}
    for batch in _batches(stream):
        made = _generated(target, [one.prompt for _, one in batch], most_tokens, ends)
        for (place, _), tokens in zip(batch, made, strict=True):
            answers[place] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        on_answer(len(answers), len(stream.examples))
    return [answers[place] for place in range(len(stream.examples))]


def _batches(stream: ExampleStream) -> Iterator[list[tuple[int, Tokenized]]]:
    """Yields batches of (place, example), longest prompts first, so that memory runs out at once if
    at all."""
    batch: list[tuple[int, Tokenized]] = []
    for place, one in sorted(enumerate(stream.examples), key=lambda pair: -len(pair[1].prompt)):
        if batch and len(batch[0][1].prompt) * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append((place, one))
    yield batch


def _generated(
    target: PrunableModel, prompts: list[torch.Tensor], most_tokens: int, ends: set[int]
) -> list[list[int]]:
    """Returns the tokens of each answer, without its end token and what follows."""
    padded, seen = left_padded(prompts, target.device)
    with likeliest(target.model) as generate:
        made = generate(
            padded,
            attention_mask=seen,
            max_new_tokens=most_tokens,
            eos_token_id=list(ends) or None,
            pad_token_id=0,
        )
    written = made[:, padded.shape[1] :].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in written]
