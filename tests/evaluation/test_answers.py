"""Answers to examples: how likely the right ones are, what the model writes, what that scores."""

import json
import math

import pytest
import torch
from conftest import (
    SETTINGS,
    SMALL,
    byte_tokenizer,
    must_refuse,
    must_run,
    tiny_model,
    tiny_prunable,
)

import disp_llm
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.example_tokens import stream_of_examples
from disp_llm.data.in_memory import read_input_examples
from disp_llm.evaluation.answers import f1, scored, written_answers
from disp_llm.evaluation.perplexity import of_answers, perplexity
from disp_llm.evaluation.sample import likeliest

ROWS = [{"prompt": "x" * n + "=", "answer": "abc"[: 1 + n % 3]} for n in (3, 11, 6, 1, 8, 2)]

MOST = 5
"""Tokens of an answer: a quarter beyond the longest, `abc` and EOS."""


def stream(rows: list = ROWS):
    return stream_of_examples(read_input_examples(rows, "auto"), byte_tokenizer())


@pytest.fixture
def target():
    return tiny_prunable("llama")


def test_perplexity_is_that_of_the_answers_each_read_alone(target):
    total, count = 0.0, 0
    for one in stream().examples:
        values = target.model(one.tokens[None]).logits[0, :-1].log_softmax(-1)
        found = values.gather(1, one.tokens[1:, None]).squeeze(1)[one.counted[1:]]
        total, count = total - float(found.sum()), count + len(found)
    measured = perplexity(target, stream(), PerplexityConfig(context=32))
    assert measured.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert measured.tokens == count == sum(len(row["answer"]) + 1 for row in ROWS)


def test_as_many_examples_are_measured_as_the_windows_have_tokens(target):
    lengths = [len(one.tokens) for one in stream().examples]
    found = of_answers(target, stream(), PerplexityConfig(context=20, windows=2))
    assert (
        sum(lengths[: len(found.window_losses)])
        <= 40
        < sum(lengths[: len(found.window_losses) + 1])
    )
    assert len(of_answers(target, stream(), PerplexityConfig(windows=0)).window_losses) == len(ROWS)
    with pytest.raises(InputError, match="row 2, has 16 tokens and a window takes 14"):
        of_answers(target, stream(), PerplexityConfig(context=14))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_5_text"])
def test_answers_do_not_depend_on_what_is_answered_beside(model_type):
    target, tokenizer = tiny_prunable(model_type), byte_tokenizer()
    together = written_answers(target, tokenizer, stream())
    for place, row in enumerate(ROWS):
        prompt = torch.tensor(tokenizer(row["prompt"])["input_ids"])[None]
        made = target.model.generate(prompt, max_new_tokens=MOST, do_sample=False, pad_token_id=0)
        written = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert together[place] == written
    assert len(set(together)) > 1


def test_answers_follow_no_penalties_and_beams_that_a_model_comes_with(target):
    tokenizer, wanted = byte_tokenizer(), written_answers(target, byte_tokenizer(), stream())
    settings = target.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.num_beams = 1.5, 1, 3
    made = target.model.generate(torch.tensor([[5, 6]]), max_new_tokens=MOST, pad_token_id=0)
    with likeliest(target.model) as generate:
        plain = generate(torch.tensor([[5, 6]]), max_new_tokens=MOST, pad_token_id=0)
    assert made.tolist() != plain.tolist()
    assert written_answers(target, tokenizer, stream()) == wanted
    assert target.model.generation_config is settings


def test_an_answer_ends_where_the_model_ends_text(target):
    tokenizer, rows = byte_tokenizer(), ROWS[1:2]
    prompt = torch.tensor(tokenizer(rows[0]["prompt"])["input_ids"])[None]
    made = target.model.generate(prompt, max_new_tokens=MOST, do_sample=False, pad_token_id=0)
    free = made[0, prompt.shape[1] :].tolist()
    end = next(token for token in free if token != free[0])
    target.model.generation_config.eos_token_id = [end]
    wanted = tokenizer.decode(free[: free.index(end)], skip_special_tokens=True).strip()
    assert written_answers(target, tokenizer, stream(rows)) == [wanted]


def test_a_prompt_without_room_for_its_answer_is_named():
    rows = [*ROWS, {"prompt": "y" * 124, "answer": "z"}]
    short = tiny_prunable("llama", max_position_embeddings=128)
    with pytest.raises(InputError, match="row 7, has 124 tokens before the answer"):
        written_answers(short, byte_tokenizer(), stream(rows))


def test_short_answers_are_right_or_wrong_and_long_ones_share_words():
    pairs = [("The cat, sat", "cat sat down"), ("x", "y"), ("", "z")]
    assert [f1(*pair) for pair in pairs] == [4 / 6, 0, 0]
    short = scored(["a b ", "c"], ["a b", "d"])
    assert (short["metric"], short["score"], short["answers"]) == ("exact_match", 0.5, 2)
    long = scored(["The cat, sat", "x", ""], ["cat sat down", "y", "one two three four five six"])
    assert (long["metric"], long["score"]) == ("f1", pytest.approx(4 / 18))
    assert long["score_stderr"] == pytest.approx(2 / 9, rel=1e-6)
    assert scored(["a"], ["a"])["score_stderr"] is None


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 4))
    return path


def test_from_the_command_line(llama_folder, examples, tmp_path):
    small = [*SMALL, "--keep", "0.6", "--examples", examples, "--output-dir", tmp_path / "run"]
    done = must_run("prune", llama_folder, *small, "--json")
    pruned = json.loads(done.stdout)
    assert pruned["source"]["text"] == "train.jsonl"
    assert pruned["source"]["eval_text"] == "answers in every tenth of train.jsonl"
    assert pruned["original"]["prompt"] == ROWS[3]["prompt"]
    folder, again = tmp_path / "run" / "keep-0.6", tmp_path / "again"
    flags = ["--examples", examples, "--context", 32, "--windows", 0, "--dtype", "float32"]
    done = must_run("eval", folder, *flags, "--limit", 5, "--json")
    found = json.loads(done.stdout)
    assert found["answers"]["answers"] == 5
    assert found["tokens"] == 4 * sum(len(row["answer"]) + 1 for row in ROWS)
    short = ["--examples", examples, "--tokens", 256, "--length", 32, "--batch", 2]
    more = ["--context", 32, "--dtype", "float32", "--output-dir", again, "--json"]
    done = must_run("recover", folder, *short, *more, "--learning-rate", 0.01)
    recovered = json.loads(done.stdout)
    assert (
        recovered["model"]["measured"]["perplexity"] < recovered["before"]["measured"]["perplexity"]
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--examples", "x.jsonl", "--text", "y.txt"], "--examples: given together with --text"),
        (["--examples", "missing.jsonl"], "--examples: missing.jsonl: No such file"),
    ],
)
def test_what_eval_refuses(llama_folder, flags, words):
    done = must_refuse("eval", llama_folder, *flags)
    assert words in done.stderr


def test_from_python():
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    found = disp_llm.eval(model, tokenizer, examples=ROWS, context=32)
    assert found["answers"]["answers"] == len(ROWS)
    result = disp_llm.prune(model, tokenizer, examples=ROWS * 4, keep=0.6, **SETTINGS)
    assert result.figures["source"]["text"].startswith("24 examples in memory")


def test_an_answer_ends_where_the_template_ends_a_turn():
    """As that of a base model whose EOS ends documents."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "3+2?", "answer": "five"}]
    stream = stream_of_examples(read_input_examples(rows, "chat"), tokenizer)
    target = tiny_prunable("llama")
    said = tokenizer("4<|im_end|>\nuser", add_special_tokens=False)["input_ids"]
    target.model.generate = lambda tokens, **_: torch.cat(
        [tokens, torch.tensor([said]).expand(len(tokens), -1)], 1
    )
    assert written_answers(target, tokenizer, stream) == ["4", "4"]
