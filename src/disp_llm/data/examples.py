"""Rows of a prompt and its answer, or of a conversation -> examples to learn from.

The forms that data sets for instruction tuning have:

    {"prompt": "…", "answer": "…"}          also "completion" or "response"
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca; "input" may be missing
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.data.reading import base_name, read_each, rows_of
from disp_llm.data.rows import Unusable, kind_of, whole_text

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
    """The setting of that name."""

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

    def first(self, count: int) -> "GivenExamples":
        """So many from the start; 0 = all."""
        return replace(self, examples=self.examples[:count]) if count else self

    def parted(self) -> tuple["GivenExamples", "GivenExamples"]:
        """What is left to learn from, and the last of them, which are only measured on."""
        first = min(len(self.examples) - 1, int(len(self.examples) * (1 - HELD_OUT)))
        if first < 1:
            raise InputError(
                "holds one example, and none is left to measure on",
                field=self.field,
                hint="give more, or `eval_examples`",
            )
        name = f"the last {len(self.examples) - first} of {self.name}"
        left = replace(self, examples=self.examples[:first], named=self.name)
        return left, replace(self, examples=self.examples[first:], named=name)

    @cached_property
    def sha256(self) -> str:
        """The hash of the turns, or of the token ids, as JSON, a line an example."""
        digest = hashlib.sha256()
        for example in self.examples:
            content = example.messages if isinstance(example, Example) else example.tokens
            digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def read_examples(
    paths: Sequence[Path], template: str, field: str = "examples"
) -> GivenExamples | None:
    """The examples of .jsonl and .json files, and of those in folders; None where none is named."""
    if not paths:
        return None

    def read(file: Path) -> Iterator[Example]:
        return (example_of(row, place, file.name) for place, row in rows_of(file))

    named = ", ".join(map(base_name, paths))
    return GivenExamples(tuple(read_each(paths, field, read)), field, named, template)


def read_input_examples(
    given: Any, template: str, field: str = "examples"
) -> tuple[Path, ...] | GivenExamples:
    """Files and folders, or examples in memory: rows as a file has them, or `TaskExample`s.

    Raises:
        InputError: it is none of these, or a row is no example.
    """
    parts = [given] if isinstance(given, str | Path) else given
    if isinstance(parts, Sequence) and parts and all(isinstance(x, str | Path) for x in parts):
        return tuple(map(Path, parts))
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"cannot be read from {type(given).__name__}", field=field, hint=FORMS)
    try:
        found = [
            row if isinstance(row, TaskExample) else example_of(row, f"row {number}")
            for number, row in enumerate(given, start=1)
        ]
    except Unusable as error:
        raise InputError(error.what, field=field, hint=error.hint) from error
    if not found:
        raise InputError("is empty", field=field, hint="give some")
    if len({isinstance(one, TaskExample) for one in found}) > 1:
        raise InputError(
            "has examples with a loss of their own and others with answers",
            field=field,
            hint="give one kind of them",
        )
    return GivenExamples(tuple(found), field, template=template)


def example_of(row: Any, place: str, file: str = "") -> Example:
    """The example of a row at a place such as "line 3".

    Raises:
        Unusable: it is none.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"has no example but {kind_of(row)} in {place}", FORMS)
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
        raise Unusable(f"has no list of messages but {kind_of(messages)} in {place}", FORMS)
    found = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable(f"has no message but {kind_of(message)} in {place}", FORMS)
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
        raise Unusable(f"has no text but {kind_of(value)} as '{key}' in {place}", FORMS)
    if not value.strip() and not may_be_empty:
        raise Unusable(f"has an empty {key} in {place}", "fill it in, or leave that example out")
    return whole_text(value, place)
