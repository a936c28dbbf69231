"""Models whose classes lie in an installed package, not in transformers."""

import json
from pathlib import Path

import fresh
import pytest
import torch
from configurations import tiny_config
from conftest import SMALL, byte_tokenizer
from fresh import PROMPT
from packages import write_package

from disp_llm.config.errors import InputError
from disp_llm.models.architectures import family_of

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
    write_package(site, "our_own", OWN, "architectures", "own = our_own:row")
    monkeypatch.setenv("PYTHONPATH", str(site))
    settings = tiny_config("llama").to_dict()
    settings.pop("model_type")
    script = (
        "import json, our_own, sys\n"
        "config = our_own.OwnConfig(**json.loads(sys.argv[2]))\n"
        "our_own.OwnForCausalLM(config).save_pretrained(sys.argv[1])"
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
        "import our_own\n"
        "assert isinstance(found, our_own.OwnForCausalLM)\n"
        "assert isinstance(found.model.layers[0].mlp, our_own.OwnMLP)\n"
        f"torch.save(found(torch.tensor([{PROMPT}])).logits, sys.argv[2])"
    )
    logits = []
    for package, remote in (("disp_llm", False), ("our_own", True)):
        made, saved = tmp_path / "run" / "keep-0.5", tmp_path / "logits.pt"
        done = fresh.run(script.format(package=package, remote=remote), made, saved)
        assert done.returncode == 0, done.stderr
        logits.append(torch.load(saved))
    assert torch.equal(*logits)
    measure = ("--text", text_file, "--context", 32, "--windows", 2)
    done = fresh.start_command("eval", tmp_path / "run" / "keep-0.5", *measure).wait()
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "run" / "keep-0.5" / "README.md").read_text()
    assert "\nimport our_own  #" in card
    assert "vllm serve" not in card  # it would not import the package
    assert "lm_eval" not in card  # nor would this


def test_a_class_that_is_not_registered_is_refused():
    """Exported folders extend the class by its name, which this one has here alone."""
    mine = type("MineConfig", (type(tiny_config("qwen3")),), {"__module__": "my_package"})
    with pytest.raises(InputError, match="MineConfig and its models are not registered"):
        family_of(mine())


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        (
            "AutoModel.register(",
            "(lambda *_: None)(",
            "OwnConfig and its models are not registered",
        ),
        ("OwnForCausalLM", "OPTForCausalLM", "our_own.OPTForCausalLM has the name of a class of"),
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
    package = tmp_path / "site" / "our_own.py"
    package.write_text(OWN.replace(there, instead))
    done = fresh.start_command("doctor", own_folder).wait()
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
