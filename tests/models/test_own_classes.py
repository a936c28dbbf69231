"""Models whose classes lie in an installed package, not in transformers."""

import json
from pathlib import Path

import fresh
import pytest
import torch
from configurations import tiny_config
from conftest import SMALL, byte_tokenizer
from fresh import PROMPT

OWN = """
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
)
from transformers.models.llama.modeling_llama import LlamaMLP
from disp_llm.models.family import Family, branch

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnMLP(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).square() * self.up_proj(x))

class OwnModel(LlamaModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = OwnMLP(config)

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()

AutoConfig.register("own", OwnConfig)
AutoModel.register(OwnConfig, OwnModel)
AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
row = Family(
    "layers",
    attention=branch("self_attn", "q_proj k_proj v_proj", "o_proj"),
    mlp=branch("mlp", "gate_proj up_proj", "down_proj"),
    supports_head_pruning=True,
)
"""
"""A package whose MLP is not Llama's, with its row."""


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """A tiny model of these classes, whose package is installed."""
    site, folder = tmp_path / "site", tmp_path / "own"
    facts = site / "own-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[disp_llm.architectures]\nown = own:row\n")
    (site / "own.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", str(site))
    settings = tiny_config("llama").to_dict()
    settings.pop("model_type")
    script = (
        "import json, own, sys\n"
        "config = own.OwnConfig(**json.loads(sys.argv[2]))\n"
        "own.OwnForCausalLM(config).save_pretrained(sys.argv[1])"
    )
    done = fresh.run(script, folder, json.dumps(settings))
    assert done.returncode == 0, done.stderr
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_they_are_pruned_and_load_with_this_package_and_without(own_folder, tmp_path, text_file):
    arguments = ("--keep", 0.5, "--text", text_file, "--output-dir", tmp_path / "run", *SMALL)
    done = fresh.start_command("prune", own_folder, "--recipe", "disp", *arguments).wait()
    assert done.returncode == 0, done.stderr
    script = (
        "import {package}, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "found = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code={remote})\n"
        "import own\n"
        "assert isinstance(found, own.OwnForCausalLM)\n"
        "assert isinstance(found.model.layers[0].mlp, own.OwnMLP)\n"
        f"torch.save(found(torch.tensor([{PROMPT}])).logits, sys.argv[2])"
    )
    logits = []
    for package, remote in (("disp_llm", False), ("own", True)):
        made, saved = tmp_path / "run" / "keep-0.5", tmp_path / "logits.pt"
        done = fresh.run(script.format(package=package, remote=remote), made, saved)
        assert done.returncode == 0, done.stderr
        logits.append(torch.load(saved))
    assert torch.equal(*logits)
    card = (tmp_path / "run" / "keep-0.5" / "README.md").read_text()
    assert "import own" in card
    assert "vllm serve" not in card


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        (
            "AutoModel.register(",
            "(lambda *_: None)(",
            "OwnConfig and its models are not registered",
        ),
        ("OwnForCausalLM", "OPTForCausalLM", "own.OPTForCausalLM has the name of a class of"),
        (
            "row = Family",
            "raise ImportError('no CUDA')\nrow = Family",
            "cannot be loaded (no CUDA)",
        ),
    ],
)
def test_classes_that_a_folder_would_not_find_are_refused(
    own_folder, tmp_path, there, instead, said
):
    package = tmp_path / "site" / "own.py"
    package.write_text(OWN.replace(there, instead))
    done = fresh.start_command("doctor", own_folder).wait()
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
