"""Rows of prompt and answer, or of a conversation -> examples -> tokens; only answers count.

Supported forms of instruction-tuning data:

    {"prompt": "…", "answer": "…"}          also "completion" or "response"
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca; "input" may be missing
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}

Messages may hold what else a chat template writes, such as `tool_calls`, and a row the `tools` that
could be called.

Without a chat template, no token belongs to both prompt and answer, and EOS ends the answer. With
one, the template writes the text, which is split where the assistant's turns begin and end.

Training windows are filled with randomly drawn examples; the last is cut off. An example with its
own loss needs all its tokens, so its loss is dropped if it does not fit. A model that keeps
examples apart by position ids reads each example alone. For other models only the first example of
a window counts (`Windows.of_first_example`).

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
        function = dict(_function(call))
        if isinstance(arguments := function.get("arguments"), str):
            function["arguments"] = _json(arguments, "arguments", place)
        found.append(dict(call) | {"function": function} if "function" in call else function)
    return found


def _functions(given: Any, key: str, place: str) -> list[dict[str, Any]]:
    """Tools, or calls of them."""
    is_list = isinstance(given, Sequence)
    if not is_list or not all(isinstance(_function(one).get("name"), str) for one in given):
        raise Unusable(
            f"has no {key} but {reprlib.repr(given)} in {place}",
            'give a list of {"type": "function", "function": {"name": …, …}}',
        )
    return list(given)


def _function(tool: Any) -> Mapping[str, Any]:
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
    if missing := [name for tool in tools if (name := _function(tool)["name"]) not in text]:
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
