"""Nothing that lies in a model's folder is run: no modules of its own, and no pickles."""

import builtins
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    byte_tokenizer,
    masks_of,
    must_refuse,
    must_run,
    run_command,
    tiny_model,
    tiny_prunable,
)
from in_memory import export_folder
from safetensors.torch import load_file

EVAL = ("--context", 32, "--windows", 2, "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """What code of the folder would leave behind; nobody is asked whether it may."""

    def nobody(*prompt: object) -> str:
        pytest.fail(f"asked {prompt}")

    monkeypatch.setattr(builtins, "input", nobody)
    return tmp_path / "it was run"


def with_own_code(folder: Path, marker: Path, **stated: object) -> Path:
    """Adds modules to a model's folder, and says in its settings that they are to be used."""
    code = f"open({str(marker)!r}, 'w')\n"
    (folder / "custom_generate").mkdir()
    for module in ("mine", "modeling_disp_llm", "configuration_disp_llm"):
        (folder / f"{module}.py").write_text(code)
    (folder / "custom_generate" / "generate.py").write_text(code)
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "mine.Mine")
    for file, change in (
        ("config.json", {"auto_map": classes} | stated),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}),
    ):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(settings | change))
    return folder


@pytest.mark.parametrize("command", ["eval", "prune", "doctor", "recover"])
def test_an_architecture_of_its_own_is_refused(llama_folder, tmp_path, marker, command):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "mine"))
    with_own_code(folder, marker, model_type="mine")
    output = ("--output-dir", tmp_path / "run") if command in ("prune", "recover") else ()
    done = must_refuse(command, folder, *output)
    assert done.stderr.count("disp-llm: ") == 1
    assert "is not supported: its code lies in its folder, and is never run;" in done.stderr
    assert not marker.exists()


def test_a_tokenizer_of_its_own_is_refused(tmp_path, marker):
    tiny_model("falcon").save_pretrained(tmp_path / "mine")
    byte_tokenizer().save_pretrained(tmp_path / "mine")
    folder = with_own_code(tmp_path / "mine", marker)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "Mine"}))
    done = run_command("eval", folder)
    assert "the tokenizer of" in done.stderr
    assert "its code lies in its folder" in done.stderr
    assert not marker.exists()


def test_an_architecture_of_transformers_runs_the_code_of_transformers(
    llama_folder, text_file, tmp_path, marker
):
    """As of many models of the hub, which were published before transformers had them."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "mine"))
    with_own_code(folder, marker)
    must_run("eval", folder, "--text", text_file, *EVAL)
    assert not marker.exists()


def test_an_exported_folder_runs_the_code_of_this_package(text_file, tmp_path, marker):
    target, folder = tiny_prunable("llama"), tmp_path / "model"
    export_folder(target, byte_tokenizer(), masks_of("random", target.layout), folder, "5GB")
    before = run_command("eval", folder, "--text", text_file, "--json", *EVAL)
    settings = json.loads((folder / "config.json").read_text())
    with_own_code(folder, marker, auto_map=settings["auto_map"])
    (folder / "SHA256SUMS").unlink()  # which would tell that the files are others
    done = must_run("eval", folder, "--text", text_file, "--json", *EVAL)
    assert json.loads(done.stdout)["perplexity"] == json.loads(before.stdout)["perplexity"]
    assert not marker.exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unopened(llama_folder, text_file, tmp_path, marker, file):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors") | {"x": Evil(marker)}, folder / file)
    done = run_command("eval", folder, "--text", text_file, *EVAL)
    assert done.returncode == 0  # the safetensors file is read
    (folder / "model.safetensors").unlink()
    for name in (folder, folder / file):
        done = must_refuse("eval", name)
        assert "Traceback" not in done.stderr
        assert ("save_pretrained" in done.stderr) == (name == folder)
    assert not marker.exists()


def test_the_pickle_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()
