"""Rows of prompt and answer, or of a conversation -> examples.

Supported forms of instruction-tuning data:

    {"prompt": "…", "answer": "…"}          also "completion" or "response"
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca; "input" may be missing
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}

Messages may hold what else a chat template writes, such as `tool_calls`, and a row the `tools` that
could be called.
"""

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.data.reading import Unusable, base_name, read_each, rows_of, whole_text

HELD_OUT = 0.1
"""Share of the learning data that is held out when no evaluation data is given: the end of a text,
every tenth example. Synthetic text holds out as many tokens as evaluation reads."""

ANSWERS = ("answer", "completion", "response")
"""Keys that may hold the answer to a `prompt`."""

ASSISTANT = "assistant"

FORMS = (
    "give rows of prompt and answer, of instruction and output, or of messages that end with an "
    "assistant's"
)


@dataclass(frozen=True)
class Example:
    """A conversation; only the assistant's turns are learned and measured."""

    messages: tuple[dict[str, Any], ...]
    """Each as chat templates expect it: `role`, `content`, and more such as `tool_calls`."""
    place: str
    """Its origin, such as "train.jsonl, line 3"."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the assistant could call, as chat templates expect it."""
    is_chat: bool = False
    """True if it was given as messages, False if as one prompt and its answer."""
    between: str = ""
    """Text between prompt and answer where no chat template is used."""


@dataclass(frozen=True)
class TaskExample:
    """One input sequence and its loss. For programs that put their own head on the model and want
    that head's loss to train the masks."""

    tokens: tuple[int, ...]
    """Ids, including BOS if the model needs one."""
    loss: Callable[[Any], Any]
    """Maps the final hidden states (N, D), float32, to the mean loss over the choices: a scalar
    tensor that is differentiable with respect to the states."""
    choices: int = 1
    """Number of choices that `loss` averages over; perplexity is exp(mean loss per choice)."""
    place: str = "an example in memory"
    """Its origin, for messages."""


@dataclass(frozen=True)
class GivenExamples:
    """Examples read from files or given in memory."""

    examples: tuple[Example | TaskExample, ...]
    field: str = "examples"
    """The setting that named them."""
    named: str = ""
    """Names of their files; "" if they were in memory."""
    template: str = "auto"

    @property
    def name(self) -> str:
        """Their name in results."""
        found = f"{len(self.examples):,} examples"
        return self.named or f"{found} in memory (sha256:{self.sha256[:12]})"

    @property
    def have_own_losses(self) -> bool:
        """True if they have their own losses in place of answers."""
        return any(isinstance(example, TaskExample) for example in self.examples)

    @property
    def measured_name(self) -> str:
        """Their name in results that measure only answers or choices."""
        return f"{'choices' if self.have_own_losses else 'answers'} in {self.name}"

    def parted(self) -> tuple["GivenExamples", "GivenExamples"]:
        """Returns learning examples, and every tenth for evaluation. The last tenth would hold few
        kinds of examples if a file is sorted by answers."""
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
        """Hash of the messages or token ids, as one line of JSON per example."""
        digest = hashlib.sha256()
        for example in self.examples:
            if isinstance(example, Example):
                content = [example.messages, example.tools] if example.tools else example.messages
            else:
                content = list(map(int, example.tokens))
            digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


def read_examples(paths: Sequence[Path], template: str, field: str = "examples") -> GivenExamples:
    """Reads examples from tables (.jsonl, .json, .csv, .parquet) and folders of them."""

    def read(file: Path) -> Iterator[Example]:
        return (example_of(row, place, file.name) for place, row in rows_of(file))

    named = ", ".join(map(base_name, paths))
    return GivenExamples(tuple(read_each(paths, field, read)), field, named, template)


def example_of(row: Any, place: str, file: str = "") -> Example:
    """Returns the example in a row; `place` is its origin, such as "line 3".

    Raises:
        Unusable: the row is not an example.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"has no example but {reprlib.repr(row)} in {place}", FORMS)
    known = f"{file}, {place}" if file else place
    if "messages" in row:
        tools = row.get("tools") or []
        tools = _json(tools, "tools", place) if isinstance(tools, str) else tools
        tools = tuple(_functions(tools, "tools", place))
        return Example(_messages(row["messages"], place), known, tools, is_chat=True)
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


def _messages(messages: Any, place: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Unusable(f"has no list of messages but {reprlib.repr(messages)} in {place}", FORMS)
    found = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable(f"has no message but {reprlib.repr(message)} in {place}", FORMS)
        role = _text(message, "role", place)
        given = {key: value for key, value in message.items() if value is not None}
        if calls := given.get("tool_calls"):
            given = {"content": ""} | given | {"tool_calls": _calls(calls, place)}
        may_be_empty = role != ASSISTANT or bool(calls)
        found.append(given | {"content": _text(given, "content", place, may_be_empty)})
    if (role := found[-1]["role"]) != ASSISTANT:
        raise Unusable(f"has no answer in {place}: its last message is by '{role}'", FORMS)
    return tuple(found)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as chat templates expect them: OpenAI's format has them as a
    string of JSON."""
    found = []
    for call in _functions(calls, "tool_calls", place):
        function = dict(function_of(call))
        if isinstance(arguments := function.get("arguments"), str):
            function["arguments"] = _json(arguments, "arguments", place)
        found.append(dict(call) | {"function": function} if "function" in call else function)
    return found


def _functions(given: Any, key: str, place: str) -> list[dict[str, Any]]:
    """Tools, or calls of them."""
    is_list = isinstance(given, Sequence)
    if not is_list or not all(isinstance(function_of(one).get("name"), str) for one in given):
        raise Unusable(
            f"has no {key} but {reprlib.repr(given)} in {place}",
            'give a list of {"type": "function", "function": {"name": …, …}}',
        )
    return list(given)


def function_of(tool: Any) -> Mapping[str, Any]:
    """What a tool, or a call of one, says of its function."""
    found = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _json(text: str, key: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(
            f"has {key} in {place} that are no JSON ({error})", "correct that example"
        ) from error


def _text(row: Mapping, key: str, place: str, may_be_empty: bool = False) -> str:
    if key not in row:
        raise Unusable(f"has no {key} in {place}", FORMS)
    value = row[key]
    if not isinstance(value, str):
        raise Unusable(f"has no text but {reprlib.repr(value)} as '{key}' in {place}", FORMS)
    if not value.strip() and not may_be_empty:
        raise Unusable(f"has an empty {key} in {place}", "fill it in, or leave that example out")
    return whole_text(value, place)
