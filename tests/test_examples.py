"""The scripts and the notebook of examples/, on a tiny model."""

import json
import re
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


@pytest.mark.proof
def test_notebook(tmp_path, llama_folder, text_file, monkeypatch):
    """Every cell as a notebook runs it: the figures are shown, and progress leaves nothing."""
    import nbclient
    import nbformat

    drawn: list[str] = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            if message["msg_type"] == "update_display_data":
                drawn.append(message["content"]["data"]["text/plain"])
            return super().process_message(message, cell, cell_index)

    # What every notebook with transformers and without ipywidgets says.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(EXAMPLES / "prune_in_a_notebook.ipynb", as_version=4)
    asked, pruning, table, frame, plot = notebook.cells
    settings = SETTINGS | {"text": str(text_file), "output_dir": str(tmp_path / "run")}
    asked.source = f"import disp_llm\nmodel = {str(llama_folder)!r}\nsettings = {settings}"
    Client(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()

    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    found = [made["measured"]["perplexity"] for made in figures["models"]]
    assert "learning masks 6/6 loss" in "\n".join(drawn)
    assert asked.outputs == []
    assert [kind["data"] for kind in pruning.outputs] == [{"text/plain": ""}]
    (html,) = [output["data"]["text/html"] for output in table.outputs]
    rows = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in html.split("<tr>")]
    assert ["", "original", "keep 0.8", "keep 0.5"] in rows
    (perplexities,) = [row for row in rows if row[:1] == ["perplexity"]]
    assert [cell.split(" ± ")[0] for cell in perplexities[2:]] == [f"{one:.2f}" for one in found]
    (shown,) = [output["data"]["text/html"] for output in frame.outputs]
    assert "measured.perplexity" in shown
    assert all(f"{one:.6f}" in shown for one in found)
    axes, picture = [output["data"] for output in plot.outputs]
    assert "perplexity" in axes["text/plain"]
    assert "image/png" in picture
