"""Examples -> tokens, of which only those of answers count.

Without a chat template, no token belongs to both prompt and answer, and EOS ends the answer. With
one, the template writes the text, which is split where the assistant's turns begin and end.

Training windows are filled with randomly drawn examples; the last is cut off. An example with its
own loss needs all its tokens, so its loss is dropped if it does not fit. A model that keeps
examples apart by position ids reads each example alone. For other models only the first example of
a window counts (`Windows.of_first_example`).

N tokens of an example.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.data.examples import ASSISTANT, Example, GivenExamples, TaskExample, function_of
from disp_llm.data.reading import Unusable, naming
from disp_llm.data.windows import StatesLoss, TaskPart, Windows, joined, usual_bos


@dataclass(frozen=True)
class Tokenized:
    """One tokenised example."""

    tokens: Int[Tensor, " N"]
    counted: Bool[Tensor, " N"]
    place: str
    """Its origin, for messages."""
    answer: str = ""
    """Text of its last answer, as the chat template writes it if one is used."""
    loss: StatesLoss | None = None
    """Its own loss; no token counts then. None if its answers count."""
    choices: int = 0
    """Number of choices that `loss` averages over."""

    def task_from(self, first: int) -> list[TaskPart]:
        """Returns its own loss, if any, for tokens that begin at position `first` of a window."""
        end = first + len(self.tokens)
        return [TaskPart(first, end, self.loss, self.choices)] if self.loss else []

    @property
    def prompt(self) -> Int[Tensor, " N"]:
        """Tokens before its last answer; all tokens if none counts."""
        return self.tokens[: int(self.counted.logical_not().nonzero()[-1]) + 1]


@dataclass(frozen=True)
class ExampleStream:
    """Tokenised examples: the counterpart of a text's token stream."""

    examples: tuple[Tokenized, ...]
    field: str = "examples"
    """The setting that named them."""

    def __len__(self) -> int:
        """Number of tokens of all examples together."""
        return sum(len(example.tokens) for example in self.examples)

    def first(self, count: int) -> "ExampleStream":
        """Returns the first `count` examples; 0 = all."""
        return ExampleStream(self.examples[: count or None], self.field)

    @cached_property
    def longest(self) -> Tokenized:
        """The example with the most tokens."""
        return max(self.examples, key=lambda example: len(example.tokens))

    def require_length(self, tokens: int, setting: str) -> None:
        """Refuses examples longer than a window of `tokens`, the value of `setting`."""
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
        """Returns windows filled with examples, drawn with replacement."""
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
        """Yields every example as its own window, in order."""
        for example in self.examples:
            own = tuple(example.task_from(0))
            tasks = (own,) if own else ()
            yield Windows(example.tokens[None], example.counted[None], tasks=tasks)

    def within(self, most_tokens: int) -> "ExampleStream":
        """Returns the first examples with at most so many tokens, but at least one; 0 = all."""
        ends = itertools.accumulate(len(example.tokens) for example in self.examples)
        return self.first(max(sum(end <= most_tokens for end in ends), 1)) if most_tokens else self


def stream_of_examples(
    given: GivenExamples, tokenizer: Any, bos_token_id: int | None = None
) -> ExampleStream:
    """Tokenises examples. Conversations begin with the BOS given; None leaves it to tokenizers."""
    found = []
    for example in given.examples:
        with naming(f"{example.place},", given.field):
            if isinstance(example, TaskExample):
                found.append(_of_task(example, tokenizer))
            else:
                found.append(_tokenized(example, given.template, tokenizer, bos_token_id))
    return ExampleStream(tuple(found), given.field)


def _of_task(example: TaskExample, tokenizer: Any) -> Tokenized:
    tokens = torch.tensor(example.tokens, dtype=torch.long)
    if not len(tokens) or int(tokens.min()) < 0 or int(tokens.max()) >= len(tokenizer):
        raise Unusable(
            f"has no token ids below {len(tokenizer)}",
            "give ids of the tokenizer of this model",
        )
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    return Tokenized(tokens, counted, example.place, "", example.loss, example.choices)


def _tokenized(
    example: Example, template: str, tokenizer: Any, bos_token_id: int | None
) -> Tokenized:
    chat = _is_chat(example, template, tokenizer)
    asked, said = example.messages[0]["content"], example.messages[-1]["content"]
    plain = (asked + example.between, False), (said, True)
    bos = bos_token_id if bos_token_id is not None or chat else usual_bos(tokenizer)
    tokens = [] if bos is None else [bos]
    counted, before = [False] * len(tokens), ""
    for text, is_answer in _in_template(example, tokenizer) if chat else plain:
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


def _is_chat(example: Example, template: str, tokenizer: Any) -> bool:
    """Returns whether the tokenizer's chat template writes the example."""
    can = bool(getattr(tokenizer, "chat_template", None))
    if not example.is_chat and (template == "plain" or (template == "auto" and not can)):
        return False
    if not can:
        raise Unusable(
            "needs a chat template, and the tokenizer has none",
            "give prompt and answer, and `template` plain",
        )
    return True


def _in_template(example: Example, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Yields the text of a conversation in parts, and whether each part is an answer."""
    written = ""
    for number, message in enumerate(example.messages):
        if message["role"] != ASSISTANT:
            continue
        before = _applied(tokenizer, example, number, add_generation_prompt=True)
        after = _applied(tokenizer, example, number + 1)
        if not before.startswith(written) or not after.startswith(before):
            raise Unusable(
                "is written otherwise by the chat template once more is said",
                "split it into several with one answer each",
            )
        end = len(after.rstrip())  # a template's white space behind it is not learned
        answer = after[len(before) : end]
        _require_named(example.tools, before)
        _require_named(message.get("tool_calls", ()), answer)
        yield before[len(written) :], False
        yield answer, True
        written = after[:end]


def _require_named(tools: Sequence[Mapping[str, Any]], text: str) -> None:
    """Refuses what a chat template without tools leaves out in silence."""
    if missing := [name for tool in tools if (name := function_of(tool)["name"]) not in text]:
        raise Unusable(
            f"has tools that the chat template does not write ({', '.join(missing)})",
            "leave them out, or use a model whose template knows tools",
        )


def _applied(tokenizer: Any, example: Example, count: int, **options: Any) -> str:
    """The first messages of an example, as the chat template writes them."""
    tools = list(example.tools) or None
    try:
        return tokenizer.apply_chat_template(
            list(example.messages[:count]), tools=tools, tokenize=False, **options
        )
    except Exception as error:  # a template raises what it likes
        raise Unusable(
            f"is refused by the chat template ({error})", "correct that example"
        ) from error


def ids_of(tokenizer: Any, text: str, before: str) -> list[int]:
    """Returns the tokens of `text`, a part of an example that follows `before`.

    Some tokenizers put a space before any input. So the part is tokenised together with `before`,
    or alone if the tokens of `before` would change.
    """

    def read(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    first, both = read(before) if before else [], read(before + text)
    return both[len(first) :] if both[: len(first)] == first else read(text)
