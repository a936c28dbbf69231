"""What models answer at the command line, and how it is asked for."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import SMALL, must_run

import disp_llm
from disp_llm.commands import generate
from disp_llm.commands.generate import Messages, load_models
from disp_llm.config.commands import AnswerConfig, ChatConfig
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig


@pytest.fixture(scope="module")
def pruned(llama_folder, text_file, tmp_path_factory):
    run = tmp_path_factory.mktemp("generated") / "run"
    flags = ("--method", "fisher", "--text", text_file, "--output-dir", run)
    must_run("prune", llama_folder, *flags, *SMALL)
    return run / "keep-0.5"


def likeliest(folder, prompt: str, tokens: int) -> str:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(asked, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return tokenizer.decode(made[0, asked.shape[1] :], skip_special_tokens=True)


def test_both_answer_as_transformers_does(pruned, llama_folder):
    flags = ("--against", "original", "--max-new-tokens", 9, "--dtype", "float32", "--json")
    done = must_run("generate", pruned, "How many", *flags)
    answers = json.loads(done.stdout)["answers"]
    assert [one["model"] for one in answers] == [str(pruned), str(llama_folder)]
    for one, folder in zip(answers, (pruned, llama_folder), strict=True):
        assert one["text"] == likeliest(folder, "How many", 9)
        assert one["tokens_per_s"] > 0


def test_answers_are_shown_below_their_names(pruned):
    done = must_run("generate", pruned, "How many", "--max-new-tokens", 5, "--dtype", "float32")
    name, *_, last = done.stdout.splitlines()
    assert name == f"[{pruned}]"
    assert last.startswith(f"{pruned}: 5 tokens, ")


def test_a_chat_remembers_until_an_empty_line(pruned):
    command = [sys.executable, "-m", "disp_llm", "chat", pruned, "--max-new-tokens", "6"]
    done = subprocess.run(
        [*map(str, command), "--dtype", "float32"], input="one\ntwo\n\none\n", text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = likeliest(pruned, "one", 6)
    second = likeliest(pruned, f"one\n{first}\ntwo", 6)
    assert done.stdout == f"[{pruned}]\n{first}\n{second}\n{first}\n"


def test_a_quiet_chat_prints_its_answers_as_json_and_nothing_else(pruned):
    command = [sys.executable, "-m", "disp_llm", "chat", pruned, "--max-new-tokens", "6"]
    done = subprocess.run(
        [*map(str, command), "--dtype", "float32", "--json", "--quiet"], input="one\n\n two\n",
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert not done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert [one["prompt"] for one in answers] == ["one", "two"]
    assert [one["text"] for one in answers] == [likeliest(pruned, one, 6) for one in ("one", "two")]


@pytest.mark.parametrize("typed", ["printf '\\377\\n' |", ""], ids=["no text", "nobody"])
def test_a_chat_takes_whatever_is_typed(pruned, typed):
    chat = [sys.executable, "-m", "disp_llm", "chat", str(pruned), "--max-new-tokens", "3"]
    line = f"{typed} {shlex.join(chat)} {'' if typed else '<&-'}"
    done = subprocess.run(
        ["sh", "-c", line], text=True, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_template_is_used_and_each_model_reads_its_own_answers(
    pruned, llama_folder, tmp_path
):
    models = []
    for folder in (pruned, llama_folder):
        models.append(shutil.copytree(folder, tmp_path / folder.name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(models[-1])
    asked = {"max_new_tokens": 5, "dtype": "float32"}
    found = disp_llm.generate(models[1], prompt="one", **asked)["answers"][0]["text"]
    assert found == likeliest(models[1], "[user]one[assistant]", 5)
    plain = disp_llm.generate(models[1], prompt="one", template="plain", **asked)
    assert plain["answers"][0]["text"] == likeliest(models[1], "one", 5)
    answers = AnswerConfig(against=str(models[1]), max_new_tokens=5)
    config = ChatConfig(str(models[0]), answers, PlaceConfig("cpu", "float32"))
    shown: dict[str, str] = dict.fromkeys(map(str, models), "")

    def show(name: str, text: str) -> None:
        shown[name] += text

    generate.chat(config, load_models(config), ["one", "two"], show)
    for model in models:
        first = likeliest(model, "[user]one[assistant]", 5)
        second = likeliest(model, f"[user]one[assistant]{first}[user]two[assistant]", 5)
        assert shown[str(model)] == f"{first}\n{second}\n"


def test_a_chat_forgets_its_oldest_turn_where_positions_end(pruned, monkeypatch):
    config, asked = ChatConfig(str(pruned), machine=PlaceConfig("cpu")), list[list[str]]()

    def answered(loaded: object, said: Messages, *more: object) -> dict[str, str]:
        asked.append([message["content"] for message in said])
        return {"text": "yes"}

    monkeypatch.setattr(generate, "_answered", answered)
    monkeypatch.setattr(generate, "fitting", lambda model, tokens: min(tokens, 45))
    lines = ["a" * 30, "b" * 30, "c"]
    generate.chat(config, load_models(config), lines, lambda name, text: None)
    assert asked == [["a" * 30], ["b" * 30], ["b" * 30, "yes", "c"]]


def test_more_than_the_positions_is_refused(pruned):
    with pytest.raises(InputError, match="reads no more"):
        disp_llm.generate(pruned, prompt="a" * 5000)


def test_an_original_that_nobody_knows_is_refused(llama_folder):
    with pytest.raises(InputError, match="nothing says what"):
        disp_llm.generate(llama_folder, prompt="a", against="original")
    with pytest.raises(InputError, match="no chat template"):
        disp_llm.generate(llama_folder, prompt="a", template="chat")
