"""The scripts of examples/, on a tiny model."""

import runpy
from pathlib import Path

import pytest
import transformers
from conftest import SETTINGS

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
    perplexity = run_in("add_a_method", str(llama_folder), str(text_file), **SETTINGS)
    assert perplexity > 1
    assert 'method = "mine"' in (tmp_path / "run-mine" / "config.toml").read_text()
