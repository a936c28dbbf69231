"""The scripts of examples/, on a tiny model."""

import runpy
import shlex
from pathlib import Path

import pytest
import transformers
from conftest import SETTINGS
from small import CALIBRATION, MEASURING

from disp_llm.cli.parsing import parse

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run_in(tmp_path, monkeypatch):
    """Runs the `main` of an example in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments, **settings):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments, **settings)

    return run


def test_tune_in_memory(run_in, llama_folder, text_file):
    figures = run_in("tune_in_memory", str(llama_folder), str(text_file), **SETTINGS)
    assert figures["tuned"] < figures["pruned"]


def test_prune_and_serve(run_in, llama_folder, text_file, tmp_path):
    command = run_in("prune_and_serve", str(llama_folder), str(text_file), "served", **SETTINGS)
    assert command == "vllm serve served --trust-remote-code"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    assert type(model).__name__ == "DispLlamaForCausalLM"
    assert "vllm serve served" in (tmp_path / "served" / "README.md").read_text()


@pytest.mark.usefixtures("no_registered_methods")
def test_add_a_method(run_in, llama_folder, text_file, tmp_path):
    read = CALIBRATION | MEASURING  # it takes no steps
    perplexity = run_in("add_a_method", str(llama_folder), str(text_file), **read)
    assert perplexity > 1
    assert 'method = "mine"' in (tmp_path / "run-mine" / "config.toml").read_text()


@pytest.mark.parametrize("name", ["prune_on_slurm.sh", "prune_on_skypilot.yaml"])
def test_launchers_ask_for_what_there_is(name):
    """The command that they start is one, with the flags that it has."""
    said = (EXAMPLES / name).read_text().replace("\\\n", " ")
    (line,) = [line for line in said.splitlines() if "-m disp_llm" in line]
    arguments = shlex.split(line.partition("-m disp_llm")[2])
    config = parse([word.replace("$", "") for word in arguments])
    assert config.resume == "auto"
    assert config.training.shard == "full"
