"""Rows of a prompt and its answer, or of a conversation -> examples to learn from.

The forms that data sets for instruction tuning have:

    {"prompt": "…", "answer": "…"}          also "completion" or "response"
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca; "input" may be missing
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.data.reading import base_name, files_under, naming, rows_of
from disp_llm.data.rows import Unusable, kind_of, require_whole_characters

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
class Turn:
    """What one side of a conversation says."""

    role: str
    content: str

    def as_message(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Example:
    """A conversation; what the assistant says is what is learned and measured."""

    turns: tuple[Turn, ...]
    place: str
    """Where it stands, such as "train.jsonl, line 3"."""
    is_chat: bool = False
    """Whether it was given as messages; else it is one prompt and its answer."""
    between: str = ""
    """What stands between prompt and answer where no template puts anything there."""

    @property
    def answer(self) -> str:
        """What is said last."""
        return self.turns[-1].content

    @property
    def content(self) -> bytes:
        """What its hash is made of."""
        return _line([turn.as_message() for turn in self.turns])


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

    @property
    def content(self) -> bytes:
        """What its hash is made of."""
        return _line(list(self.tokens))


def _line(said: Any) -> bytes:
    return json.dumps(said, sort_keys=True).encode() + b"\n"


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

    def first(self, count: int) -> "GivenExamples":
        """So many from the start; 0 = all."""
        return replace(self, examples=self.examples[:count]) if count else self

    def parted(self) -> tuple["GivenExamples", "GivenExamples"]:
        """What is left to learn from, and the last of them, which are only measured on.

        Raises:
            InputError: there is one example alone.
        """
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
            digest.update(example.content)
        return digest.hexdigest()


def read_examples(
    paths: Sequence[Path], template: str, field: str = "examples"
) -> GivenExamples | None:
    """`required_examples`; None where no file is named."""
    return required_examples(paths, template, field) if paths else None


def required_examples(
    paths: Sequence[Path], template: str, field: str = "examples"
) -> GivenExamples:
    """The examples of .jsonl and .json files, and of those in folders.

    Args:
        field: the setting that the files were named in, for messages.

    Raises:
        InputError: a file is missing, damaged or empty, or a row is no example; it names the line.
    """
    found: list[Example] = []
    for path in paths:
        with naming(path, field):
            files = files_under(path)
        for file in files:
            with naming(file, field):
                found += [
                    example_of(row, f"in {place}", f"{file.name}, {place}")
                    for place, row in rows_of(file)
                ]
    named = ", ".join(base_name(path) for path in paths)
    return GivenExamples(tuple(found), field, named, template)


def read_input_examples(
    given: Any, template: str, field: str = "examples"
) -> tuple[Path, ...] | GivenExamples:
    """Files and folders, or examples in memory.

    Args:
        given: one path or several; rows as a file has them, or `TaskExample`s; or a
            `datasets.Dataset` of rows.

    Raises:
        InputError: it is none of these, or a row is no example.
    """
    if isinstance(given, str | Path):
        return (Path(given),)
    if isinstance(given, Sequence) and given and all(isinstance(x, str | Path) for x in given):
        return tuple(map(Path, given))
    return _in_memory(given, template, field)


def _in_memory(rows: Any, template: str, field: str) -> GivenExamples:
    if isinstance(rows, bytes | Mapping) or not isinstance(rows, Iterable):
        raise InputError(f"cannot be read from {type(rows).__name__}", field=field, hint=FORMS)
    try:
        found = [
            row if isinstance(row, TaskExample) else example_of(row, f"in row {i}", f"row {i}")
            for i, row in enumerate(rows, start=1)
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


def example_of(row: Any, where: str, place: str) -> Example:
    """The example of a row.

    Args:
        where: of the row, for messages, such as "in line 3".
        place: what the example is told by later.

    Raises:
        Unusable: it is none.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"has no example but {kind_of(row)} {where}", FORMS)
    between = ""
    if "messages" in row:
        return Example(_turns(row["messages"], where), place, is_chat=True)
    if "prompt" in row:
        prompt = _text(row, "prompt", where)
        key = next((key for key in ANSWERS if key in row), ANSWERS[0])
    elif "instruction" in row:
        more = _text(row, "input", where, may_be_empty=True) if row.get("input") else ""
        prompt = "\n\n".join(part for part in (_text(row, "instruction", where), more) if part)
        key, between = "output", "\n\n"
    else:
        raise Unusable(f"has no prompt {where}", FORMS)
    answer = _text(row, key, where)
    return Example((Turn("user", prompt), Turn(ASSISTANT, answer)), place, between=between)


def _turns(messages: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Unusable(f"has no list of messages but {kind_of(messages)} {where}", FORMS)
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable(f"has no message but {kind_of(message)} {where}", FORMS)
        role = _text(message, "role", where)
        spoken = role == ASSISTANT
        turns.append(Turn(role, _text(message, "content", where, may_be_empty=not spoken)))
    if turns[-1].role != ASSISTANT:
        raise Unusable(f"has no answer {where}: its last message is by '{turns[-1].role}'", FORMS)
    return tuple(turns)


def _text(row: Mapping, key: str, where: str, may_be_empty: bool = False) -> str:
    if key not in row:
        raise Unusable(f"has no {key} {where}", FORMS)
    value = row[key]
    if not isinstance(value, str):
        raise Unusable(f"has no text but {kind_of(value)} as '{key}' {where}", FORMS)
    if not value.strip() and not may_be_empty:
        raise Unusable(f"has an empty {key} {where}", "fill it in, or leave that example out")
    require_whole_characters(value, where)
    return value
