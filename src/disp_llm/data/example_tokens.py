"""Examples -> tokens, of which those of answers count; and windows of them.

A prompt and its answer, which ends with EOS, are tokenised such that no token belongs to both; or
both as the chat template of the tokenizer writes them, whose text is cut where the assistant's
turns begin and end.

Training windows are filled with one example after the other, drawn at random; the last is cut off.
Of examples with a loss of their own, which needs all their tokens, the last that does not fit is
left out. A model that can be told the places of tokens reads each without those before it; of what
other models read, the first example of a window counts alone (`Windows.of_first_example`).

E examples, N tokens of all of them, B windows, T tokens of a window.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.data.examples import ASSISTANT, Example, GivenExamples, TaskExample
from disp_llm.data.windows import StatesLoss, TaskPart, Windows, joined, usual_bos


@dataclass(frozen=True)
class Tokenized:
    """One example."""

    tokens: Int[Tensor, " N"]
    counted: Bool[Tensor, " N"]
    place: str
    """Where it was read, for messages."""
    answer: str = ""
    """What its last answer says, as the template writes it where there is one."""
    loss: StatesLoss | None = None
    """Its own, where no token counts."""
    choices: int = 0
    """How many its own loss is the mean of."""

    def task_from(self, first: int) -> list[TaskPart]:
        """Its own loss, if it has one, where its tokens begin at that place of a window."""
        end = first + len(self.tokens)
        return [TaskPart(first, end, self.loss, self.choices)] if self.loss else []

    @property
    def prompt(self) -> Int[Tensor, " N"]:
        """What stands before its last answer."""
        return self.tokens[: int(self.counted.logical_not().nonzero()[-1]) + 1]


@dataclass(frozen=True)
class ExampleStream:
    """What a text's stream of tokens is for examples."""

    examples: tuple[Tokenized, ...]
    field: str = "examples"
    """The setting that they were given in."""

    def __len__(self) -> int:
        """Tokens of all examples together."""
        return sum(len(example.tokens) for example in self.examples)

    def first(self, count: int) -> "ExampleStream":
        """So many from the start; 0 = all."""
        return ExampleStream(self.examples[: count or None], self.field)

    @cached_property
    def longest(self) -> Tokenized:
        """The example with most tokens."""
        return max(self.examples, key=lambda example: len(example.tokens))

    def require_length(self, tokens: int, setting: str) -> None:
        """Refuses an example that is longer than a window, whose length that setting says."""
        longer = sum(len(example.tokens) > tokens for example in self.examples)
        if longer:
            others = f" ({longer:,} examples are too long)" if longer > 1 else ""
            raise InputError(
                f"{self.longest.place}, has {len(self.longest.tokens):,} tokens and a window takes "
                f"{tokens:,}{others}",
                field=self.field,
                hint=f"shorten it or leave it out, or give a larger `{setting}`",
            )

    def random_windows(self, count: int, length: int, noise: torch.Generator) -> Windows:
        """Windows that are filled with examples, each drawn anew."""
        return joined([self._random_window(length, noise) for _ in range(count)])

    def _random_window(self, length: int, noise: torch.Generator) -> Windows:
        drawn: list[Tokenized] = []
        tasks: list[TaskPart] = []
        filled = 0
        while filled < length:
            example = self.examples[int(torch.randint(len(self.examples), (), generator=noise))]
            tasks += [part for part in example.task_from(filled) if part.end <= length]
            filled += len(example.tokens)
            drawn.append(example)
        return Windows(
            torch.cat([example.tokens for example in drawn])[None, :length],
            torch.cat([example.counted for example in drawn])[None, :length],
            torch.cat([torch.arange(len(example.tokens)) for example in drawn])[None, :length],
            tasks=(tuple(tasks),) if tasks else (),
        )

    def alone(self) -> Iterator[Windows]:
        """Every example as a window of its own, in order."""
        for example in self.examples:
            own = tuple(example.task_from(0))
            tasks = (own,) if own else ()
            yield Windows(example.tokens[None], example.counted[None], tasks=tasks)

    def within(self, most_tokens: int) -> "ExampleStream":
        """As many from the start as have no more tokens than these, but one at least; 0 = all."""
        ends = itertools.accumulate(len(example.tokens) for example in self.examples)
        return self.first(max(sum(end <= most_tokens for end in ends), 1)) if most_tokens else self


def stream_of_examples(
    given: GivenExamples, tokenizer: Any, bos_token_id: int | None = None
) -> ExampleStream:
    """The tokens of examples, each of which begins with that BOS where the model needs one."""
    writer = _Writer(given, tokenizer, bos_token_id)
    return ExampleStream(tuple(map(writer.tokenized, given.examples)), given.field)


@dataclass(frozen=True)
class _Writer:
    """Writes examples as one tokenizer reads them."""

    given: GivenExamples
    tokenizer: Any
    bos_token_id: int | None

    def tokenized(self, example: Example | TaskExample) -> Tokenized:
        if isinstance(example, TaskExample):
            return self._of_task(example)
        chat, tokenizer = self._is_chat(example), self.tokenizer
        asked, said = example.messages[0]["content"], example.messages[-1]["content"]
        plain = (asked + example.between, False), (said, True)
        bos = self.bos_token_id
        if bos is None and not chat:
            bos = usual_bos(tokenizer)
        tokens = [] if bos is None else [bos]
        counted, before = [False] * len(tokens), ""
        for text, is_answer in self._in_template(example) if chat else plain:
            ids = ids_of(tokenizer, text, before)
            if is_answer and not chat and tokenizer.eos_token_id is not None:
                ids.append(tokenizer.eos_token_id)
            if chat and tokens and ids[:1] == tokens:
                ids = ids[1:]  # the template writes BOS too
            tokens += ids
            counted += [is_answer] * len(ids)
            before += text
            if chat and is_answer:  # a template may put words of its own into it
                said = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Tokenized(torch.tensor(tokens), torch.tensor(counted), example.place, said)

    def _of_task(self, example: TaskExample) -> Tokenized:
        tokens = torch.tensor(example.tokens, dtype=torch.long)
        if not len(tokens) or int(tokens.min()) < 0 or int(tokens.max()) >= len(self.tokenizer):
            raise InputError(
                f"{example.place}, has no token ids below {len(self.tokenizer)}",
                field=self.given.field,
                hint="give ids of the tokenizer of this model",
            )
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        return Tokenized(tokens, counted, example.place, "", example.loss, example.choices)

    def _is_chat(self, example: Example) -> bool:
        can, asked = bool(getattr(self.tokenizer, "chat_template", None)), self.given.template
        if not example.is_chat and (asked == "plain" or (asked == "auto" and not can)):
            return False
        if not can:
            raise InputError(
                f"{example.place}, needs a chat template, and the tokenizer has none",
                field=self.given.field,
                hint="give prompt and answer, and `template` plain",
            )
        return True

    def _in_template(self, example: Example) -> Iterator[tuple[str, bool]]:
        """The text of a conversation in parts, and which of them are answers."""
        written = ""
        for number, message in enumerate(example.messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._applied(example, number, add_generation_prompt=True)
            after = self._applied(example, number + 1)
            if not before.startswith(written) or not after.startswith(before):
                raise InputError(
                    f"{example.place}, is written otherwise by the chat template once more is said",
                    field=self.given.field,
                    hint="split it into several with one answer each",
                )
            yield before[len(written) :], False
            end = len(after.rstrip())  # what a template puts behind the end is not to be learned
            yield after[len(before) : end], True
            written = after[:end]

    def _applied(self, example: Example, count: int, **options: Any) -> str:
        messages = list(example.messages[:count])
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # a template raises what it likes
            raise InputError(
                f"{example.place}, is refused by the chat template ({error})",
                field=self.given.field,
                hint="correct that example",
            ) from error


def ids_of(tokenizer: Any, text: str, before: str) -> list[int]:
    """The tokens of a part of an example.

    Some tokenizers put a space before whatever they read. The part gets none of its own, since it
    is read together with what stands before it; where a token would belong to both, alone.
    """

    def read(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    first, both = read(before) if before else [], read(before + text)
    return both[len(first) :] if both[: len(first)] == first else read(text)
