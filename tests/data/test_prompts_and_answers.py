"""Rows of prompt and answer, or conversations -> tokens, of which those of answers count."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import byte_tokenizer
from tokenizers import normalizers

from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.data.example_tokens import ExampleStream, ids_of, stream_of_examples
from disp_llm.data.examples import GivenExamples, read_examples
from disp_llm.data.in_memory import read_input_examples
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import load_tokens

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TALK = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "and 1?"},
    {"role": "assistant", "content": "5"},
]


def written(folder: Path, rows: list, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stream(rows: list, template: str = "auto", tokenizer=None, bos: int | None = None):
    given = read_input_examples(rows, template)
    assert isinstance(given, GivenExamples)
    return stream_of_examples(given, tokenizer or byte_tokenizer(), bos)


def said(found: ExampleStream, place: int = 0) -> tuple[str, str]:
    """An example as text, and what counts of it."""
    one, tokenizer = found.examples[place], byte_tokenizer()
    return tokenizer.decode(one.tokens), tokenizer.decode(one.tokens[one.counted])


@pytest.mark.parametrize(
    ("row", "whole", "answer"),
    [
        ({"prompt": "2+2=", "answer": "4"}, "2+2=4</s>", "4</s>"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=4</s>", "4</s>"),
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, "Add.\n\n2 2\n\n4</s>", "4</s>"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.\n\nhi</s>", "hi</s>"),
    ],
)
def test_an_answer_counts_and_ends_the_text(row, whole, answer):
    assert said(stream([row])) == (whole, answer)


def test_tables_of_other_kinds_hold_examples_too(tmp_path):
    table = pd.DataFrame({"prompt": ["2+2=", "3+3="], "answer": ["4", "6"]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.assign(answer=["4", 6.0]).astype(str).to_parquet(tmp_path / "b.parquet")
    given = read_examples([tmp_path / "a.csv", tmp_path / "b.parquet"], "auto")
    assert given is not None
    answers = [one.messages[-1]["content"] for one in given.examples]
    assert answers == ["4", "6", "4", "6.0"]


def test_columns_without_a_name_are_left_out_and_none_is_read_twice(tmp_path):
    """A table that was written with its index twice has two without a name."""
    path = tmp_path / "a.csv"
    path.write_text(",,prompt,answer\n0,0,2+2=,4\n")
    (one,) = read_examples([path], "auto").examples
    assert [message["content"] for message in one.messages] == ["2+2=", "4"]
    path.write_text("prompt,answer,answer\n2+2=,4,5\n")
    with pytest.raises(InputError, match="has 2 columns 'answer'"):
        read_examples([path], "auto")


def test_a_template_is_cut_where_the_assistant_speaks():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    whole, answers = said(stream([{"messages": TALK}], tokenizer=tokenizer))
    assert whole == (
        "<|user|>2+2?<|end|>\n<|assistant|>4<|end|>\n<|user|>and 1?<|end|>\n<|assistant|>5<|end|>"
    )
    assert answers == "4<|end|>5<|end|>"
    row = {"prompt": "2+2=", "answer": "4"}
    assert said(stream([row], tokenizer=tokenizer))[1] == "4<|end|>"
    assert said(stream([row], "plain", tokenizer))[1] == "4</s>"


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function"}
ASKED = [
    {"role": "user", "content": "Rain in Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "no"},
    {"role": "assistant", "content": "No.", "tool_calls": None},
]
TOOLS_TEMPLATE = (
    "{% for t in tools or [] %}<|tool|>{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}"
    "<|call|>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("arguments", [{"city": "Rome"}, '{"city": "Rome"}'])
@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])])
def test_tools_and_calls_of_them_are_written_and_learned(arguments, tools):
    """Arguments and tools also as strings of JSON, as OpenAI and many data sets have them."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    call = CALL | {"function": {"name": "weather", "arguments": arguments}}
    talk = [ASKED[0], ASKED[1] | {"tool_calls": [call]}, *ASKED[2:]]
    whole, answers = said(stream([{"messages": talk, "tools": tools}], tokenizer=tokenizer))
    assert whole.startswith(f"<|tool|>{json.dumps(WEATHER)}<|user|>Rain in Rome?")
    assert answers == '<|call|>weather{"city": "Rome"}<|end|>No.<|end|>'
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(InputError, match=r"the chat template does not write \(weather\)"):
        stream([{"messages": talk}], tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"the chat template does not write \(weather\)"):
        stream([{"messages": TALK, "tools": tools}], tokenizer=tokenizer)


def test_examples_with_other_tools_are_other_examples():
    with_tools, without = (
        read_input_examples([{"messages": TALK, "tools": tools}], "auto").sha256
        for tools in ([WEATHER], None)
    )
    assert with_tools != without
    assert without == read_input_examples([{"messages": TALK}], "auto").sha256


def test_a_needed_bos_stands_first_and_once():
    row = {"prompt": "a", "answer": "b"}
    for tokenizer, bos in ((byte_tokenizer(bos=True), None), (byte_tokenizer(), 1)):
        assert said(stream([row], tokenizer=tokenizer, bos=bos))[0] == "<s>ab</s>"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<s>" + TEMPLATE
    whole, _ = said(stream([row], tokenizer=tokenizer, bos=1))
    assert whole.count("<s>") == 1


def test_prompts_end_before_the_last_answer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    one = stream([{"messages": TALK}], tokenizer=tokenizer).examples[0]
    assert tokenizer.decode(one.prompt).endswith("4<|end|>\n<|user|>and 1?<|end|>\n<|assistant|>")
    assert one.answer == "5<|end|>"  # which is no special token here: the model learns to write it


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_answers_have_the_tokens_that_they_have_in_the_whole_text(template):
    """Of a tokenizer that puts a space before whatever it reads, as Llama 2's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.chat_template = TEMPLATE
    row = {"prompt": "2 and 2 is", "answer": " 4"} if template == "plain" else {"messages": TALK}
    one = stream([row], template, tokenizer).examples[0]
    whole = "2 and 2 is 4"
    if template == "chat":
        whole = tokenizer.apply_chat_template(TALK, tokenize=False).rstrip()
    ends = [tokenizer.eos_token_id] if template == "plain" else []
    assert one.tokens.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"] + ends
    wanted = {"chat": "4<|end|>5<|end|>", "plain": " 4</s>"}
    assert tokenizer.decode(one.tokens[one.counted]) == wanted[template]


def test_where_a_token_would_belong_to_both_the_answer_is_read_alone():
    class Pairs:
        """Reads two letters at a time."""

        eos_token_id = None

        def __call__(self, text, **options):
            pairs = (text[i : i + 2] for i in range(0, len(text), 2))
            return {"input_ids": [hash(pair) for pair in pairs]}

    assert ids_of(Pairs(), "cd", "abc") == [hash("cd")]
    assert ids_of(Pairs(), "cde", "ab") == [hash("cd"), hash("e")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "has no answer in line 2"),
        ({"prompt": "a", "answer": "  "}, "has an empty answer in line 2"),
        ({"prompt": "", "answer": "b"}, "has an empty prompt in line 2"),
        ({"prompt": "a", "answer": 3}, "has no text but 3 as 'answer' in line 2"),
        ({"text": "a"}, "has no prompt in line 2"),
        ([1], "has no example but [1] in line 2"),
        ({"messages": TALK[:3]}, "has no answer in line 2: its last message is by 'user'"),
        ({"messages": []}, "has no list of messages but [] in line 2"),
        ({"messages": [{"content": "a"}]}, "has no role in line 2"),
        ({"messages": TALK, "tools": [{"name": 3}]}, "has no tools but [{'name': 3}] in line 2"),
        ({"messages": TALK, "tools": "[}"}, "has tools in line 2 that are no JSON"),
        ({"messages": ASKED}, "has no tool_calls but [{'id': '1', 'type': 'function'}] in line 2"),
    ],
)
def test_a_row_that_is_no_example_is_named(tmp_path, row, words):
    path = written(tmp_path, [{"prompt": "a", "answer": "b"}, row])
    with pytest.raises(InputError) as error:
        read_examples([path], "auto")
    assert error.value.what.startswith(f"{path} {words}")
    assert error.value.field == "examples"


def test_what_cannot_be_written_is_named_by_its_line(tmp_path):
    given = read_examples([written(tmp_path, [{"messages": TALK}])], "auto")
    assert given is not None
    with pytest.raises(InputError, match=r"train.jsonl, line 1, needs a chat template"):
        stream_of_examples(given, byte_tokenizer())
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(InputError, match=r"train.jsonl, line 1, is written otherwise"):
        stream_of_examples(given, tokenizer)


def test_an_example_longer_than_a_window_is_named_by_its_line(tmp_path):
    rows = [{"prompt": "a" * n, "answer": "b"} for n in (5, 40)]
    texts = load_tokens(
        TextConfig(
            examples=(written(tmp_path, rows),),
            eval_examples=(written(tmp_path, rows[:1], "test.jsonl"),),
        ),
        byte_tokenizer(),
    )
    texts.corpus.require_length(42, "length")
    with pytest.raises(
        InputError, match=r"train.jsonl, line 2, has 42 tokens and a window takes 41;"
    ):
        texts.corpus.require_length(41, "length")
    with pytest.raises(InputError, match=r"line 2, has 42 .* takes 6 .2 examples are too long.;"):
        texts.corpus.require_length(6, "length")


def test_windows_are_filled_with_examples_from_their_first_token_on():
    found = stream([{"prompt": "x" * n, "answer": "yz"} for n in range(1, 6)])
    windows = found.random_windows(50, 20, torch.Generator().manual_seed(0))
    assert windows.tokens.shape == windows.counted.shape == windows.places.shape == (50, 20)
    wanted = {tuple(one.tokens.tolist()): one.counted.tolist() for one in found.examples}
    drawn = set()
    for tokens, counted, places in zip(
        windows.tokens.tolist(), windows.counted.tolist(), windows.places.tolist(), strict=True
    ):
        starts = [i for i, place in enumerate(places) if place == 0]
        assert starts[0] == 0
        for start, end in itertools.pairwise(starts):  # all but the last, which is cut
            example = tuple(tokens[start:end])
            assert counted[start:end] == wanted[example]
            assert places[start:end] == list(range(end - start))
            drawn.add(example)
    assert drawn == set(wanted)
    first = windows.of_first_example
    assert torch.equal(first.predicted.sum(1), torch.full((50,), 3))  # y, z and EOS


def test_every_tenth_is_only_measured_on(tmp_path):
    rows = [{"prompt": f"{n:02}", "answer": "b"} for n in range(20)]
    path = written(tmp_path, rows)
    texts = load_tokens(TextConfig(examples=(path,)), byte_tokenizer())
    (learned,) = texts.corpus.streams
    assert (len(learned.examples), len(texts.evaluation.examples)) == (18, 2)
    assert said(texts.evaluation)[0] == "09b</s>"
    assert texts.names["text"] == "train.jsonl"
    assert texts.names["eval_text"] == "answers in every tenth of train.jsonl"
    assert texts.names["text_sha256"] != texts.names["eval_text_sha256"]
    with pytest.raises(InputError, match="holds one example"):
        read_sources(TextConfig(examples=(written(tmp_path, rows[:1], "one.jsonl"),)))


def test_examples_and_texts_are_drawn_by_their_weights(tmp_path):
    path = written(tmp_path, [{"prompt": "p", "answer": "a"}] * 20)
    (tmp_path / "text.txt").write_text("t" * 500)
    config = TextConfig(text=(tmp_path / "text.txt",), examples=(path,), weights=(1, 3))
    check_settings(config)
    texts = load_tokens(config, byte_tokenizer())
    assert texts.corpus.weights == (0.25, 0.75)
    assert len(texts.corpus.streams[0]) == 500  # measured on are examples, so no text is held out
    windows = texts.corpus.draw(8, 10, torch.Generator().manual_seed(0))
    of_text = (windows.tokens == windows.tokens[:, :1]).all(1)
    assert int(of_text.sum()) == 2
    assert windows.counted[of_text].all()
    assert not windows.counted[~of_text].all(1).any()
    assert torch.equal(windows.places[of_text], torch.arange(10).expand(2, 10))
    with pytest.raises(InputError, match=r"weights: must be as many as there are texts \(2;"):
        check_settings(TextConfig(text=config.text, examples=(path,), weights=(1,)))
