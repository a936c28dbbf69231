"""Rows of a prompt and its answer, or of a conversation -> examples -> their tokens, of which those
of answers count.

The forms that data sets for instruction tuning have:

    {"prompt": "…", "answer": "…"}          also "completion" or "response"
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca; "input" may be missing
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}

A prompt and its answer, which ends with EOS, are tokenised such that no token belongs to both; or
both as the chat template of the tokenizer writes them, whose text is cut where the assistant's
turns begin and end.

Training windows are filled with one example after the other, drawn at random; the last is cut off.
Of examples with a loss of their own, which needs all their tokens, the last that does not fit is
left out. A model that can be told the places of tokens reads each without those before it; of what
other models read, the first example of a window counts alone (`Windows.of_first_example`).

N tokens of an example.
"""

import hashlib
import itertools
import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.data.reading import Unusable, base_name, naming, read_each, rows_of, whole_text
from disp_llm.data.windows import StatesLoss, TaskPart, Windows, joined, usual_bos

HELD_OUT = 0.1
"""Share of what is learned from, at its end, that is only measured on when nothing else is given
for that; of synthetic text it is as many as are measured on."""

ANSWERS = ("answer", "completion", "response")
"""Keys that an answer to a `prompt` is found under."""

ASSISTANT = "assistant"

FORMS = (
    "give rows of prompt and answer, of instruction and output, or of messages that end with an "
    "assistant's"
)


@dataclass(frozen=True)
class Example:
    """A conversation; what the assistant says is what is learned and measured."""

    messages: tuple[dict[str, str], ...]
    """As chat templates take them: role and content."""
    place: str
    """Where it stands, such as "train.jsonl, line 3"."""
    is_chat: bool = False
    """Whether it was given as messages; else it is one prompt and its answer."""
    between: str = ""
    """What stands between prompt and answer where no template puts anything there."""


@dataclass(frozen=True)
class TaskExample:
    """Tokens that a model reads at once, and what it loses on them: for a program that has heads of
    its own on the model, whose loss is to teach the masks."""

    tokens: tuple[int, ...]
    """Ids, with BOS where the model wants one."""
    loss: Callable[[Any], Any]
    """Final hidden states (N, D) of the tokens, float32 -> the mean loss of the choices that are
    made there, a scalar tensor through which a gradient flows back to the states."""
    choices: int = 1
    """How many the loss is the mean of; perplexity is e to the mean loss of a choice."""
    place: str = "an example in memory"
    """Where it was read, for messages."""


@dataclass(frozen=True)
class GivenExamples:
    """Examples that were read, or handed over in memory."""

    examples: tuple[Example | TaskExample, ...]
    field: str = "examples"
    """The setting that they were given in."""
    named: str = ""
    """What their files are called; "" = they lay in memory."""
    template: str = "auto"

    @property
    def name(self) -> str:
        """What results call them."""
        found = f"{len(self.examples):,} examples"
        return self.named or f"{found} in memory (sha256:{self.sha256[:12]})"

    @property
    def have_own_losses(self) -> bool:
        """Whether they have losses of their own in place of answers."""
        return any(isinstance(example, TaskExample) for example in self.examples)

    @property
    def measured_name(self) -> str:
        """What results call them where answers or choices alone are measured."""
        return f"{'choices' if self.have_own_losses else 'answers'} in {self.name}"

    def parted(self) -> tuple["GivenExamples", "GivenExamples"]:
        """What is left to learn from, and every tenth, which are only measured on: the last of
        them would be of few kinds where a file is sorted by answers."""
        held_out = set(range(len(self.examples))[:: -round(1 / HELD_OUT)])
        if len(self.examples) < 2:
            raise InputError(
                "holds one example, and none is left to measure on",
                field=self.field,
                hint="give more, or `eval_examples`",
            )
        learned, measured = (
            tuple(one for place, one in enumerate(self.examples) if (place in held_out) == measured)
            for measured in (False, True)
        )
        return (
            replace(self, examples=learned, named=self.name),
            replace(self, examples=measured, named=f"every tenth of {self.name}"),
        )

    @cached_property
    def sha256(self) -> str:
        """The hash of the turns, or of the token ids, as JSON, a line an example."""
        digest = hashlib.sha256()
        for example in self.examples:
            content = (
                example.messages if isinstance(example, Example) else list(map(int, example.tokens))
            )
            digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def read_examples(paths: Sequence[Path], template: str, field: str = "examples") -> GivenExamples:
    """The examples of tables (.jsonl, .json, .csv, .parquet), and of those in folders."""

    def read(file: Path) -> Iterator[Example]:
        return (example_of(row, place, file.name) for place, row in rows_of(file))

    named = ", ".join(map(base_name, paths))
    return GivenExamples(tuple(read_each(paths, field, read)), field, named, template)


def example_of(row: Any, place: str, file: str = "") -> Example:
    """The example of a row at a place such as "line 3".

    Raises:
        Unusable: it is none.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"has no example but {reprlib.repr(row)} in {place}", FORMS)
    known = f"{file}, {place}" if file else place
    if "messages" in row:
        return Example(_messages(row["messages"], place), known, is_chat=True)
    between = ""
    if "prompt" in row:
        prompt = _text(row, "prompt", place)
        key = next((key for key in ANSWERS if key in row), ANSWERS[0])
    elif "instruction" in row:
        more = _text(row, "input", place, may_be_empty=True) if row.get("input") else ""
        prompt = "\n\n".join(part for part in (_text(row, "instruction", place), more) if part)
        key, between = "output", "\n\n"
    else:
        raise Unusable(f"has no prompt in {place}", FORMS)
    asked = {"role": "user", "content": prompt}
    answer = {"role": ASSISTANT, "content": _text(row, key, place)}
    return Example((asked, answer), known, between=between)


def _messages(messages: Any, place: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Unusable(f"has no list of messages but {reprlib.repr(messages)} in {place}", FORMS)
    found = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable(f"has no message but {reprlib.repr(message)} in {place}", FORMS)
        role = _text(message, "role", place)
        content = _text(message, "content", place, may_be_empty=role != ASSISTANT)
        found.append({"role": role, "content": content})
    if (role := found[-1]["role"]) != ASSISTANT:
        raise Unusable(f"has no answer in {place}: its last message is by '{role}'", FORMS)
    return tuple(found)


def _text(row: Mapping, key: str, place: str, may_be_empty: bool = False) -> str:
    if key not in row:
        raise Unusable(f"has no {key} in {place}", FORMS)
    value = row[key]
    if not isinstance(value, str):
        raise Unusable(f"has no text but {reprlib.repr(value)} as '{key}' in {place}", FORMS)
    if not value.strip() and not may_be_empty:
        raise Unusable(f"has an empty {key} in {place}", "fill it in, or leave that example out")
    return whole_text(value, place)


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
    """Whether the tokenizer's chat template writes an example."""
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
    """The text of a conversation in parts, and which of them are answers."""
    written = ""
    for number, message in enumerate(example.messages):
        if message["role"] != ASSISTANT:
            continue
        before = _applied(tokenizer, example.messages[:number], add_generation_prompt=True)
        after = _applied(tokenizer, example.messages[: number + 1])
        if not before.startswith(written) or not after.startswith(before):
            raise Unusable(
                "is written otherwise by the chat template once more is said",
                "split it into several with one answer each",
            )
        yield before[len(written) :], False
        end = len(after.rstrip())  # what a template puts behind the end is not to be learned
        yield after[len(before) : end], True
        written = after[:end]


def _applied(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # a template raises what it likes
        raise Unusable(
            f"is refused by the chat template ({error})", "correct that example"
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
