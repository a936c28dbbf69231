"""Uniform models, as their original's own architecture has them."""

import json
from pathlib import Path

import fresh
import pytest
import torch
from conftest import SMALL, byte_tokenizer, masks_of, must_run, tiny_prunable
from in_memory import blocks_that_differ, export_folder
from transformers import AutoModelForCausalLM

from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.progress import silent

PROMPT = torch.tensor([[5, 60, 7, 33, 100, 12]])


def uniform_folder(
    model_type: str, folder: Path, shard: str = "5GB", whole: tuple[int, ...] = ()
) -> Path:
    """A tiny model of which every block has lost one of its two KV heads, and channels.

    Args:
        whole: blocks that keep both heads after all.
    """
    dense = tiny_prunable(model_type)
    target = PrunableModel(dense.model, dense.family, ("mlp_mid", HEADS))
    scores = torch.rand(target.layout.entries, generator=torch.Generator().manual_seed(0))
    for name, part in zip(target.layout.names, target.layout.split(scores), strict=True):
        if name.endswith(HEADS):
            part.mul_(0.4)
    budget = Budget(target.layout, sites=target.sites, uniform=True)
    kept = project(scores, budget, 0.7, 8).kept
    for name, part in zip(target.layout.names, target.layout.split(kept), strict=True):
        assert not name.endswith(HEADS) or int(part.sum()) == 1
        if name in [f"layers.{block}.{HEADS}" for block in whole]:
            part[:] = True
    masks = Masks(target.layout, kept, Selection(scores))
    export_folder(target, byte_tokenizer(), masks, folder, shard)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    return folder


@pytest.mark.parametrize(
    "model_type",
    "mixtral llama qwen2 qwen3 gemma2 gpt_oss cohere2 nemotron glm4 phi".split(),
)
def test_heads_of_one_number_are_the_original_class(model_type, tmp_path):
    folder = uniform_folder(model_type, tmp_path / "ours")
    convert(ConvertConfig(folder, "plain", tmp_path / "plain"), progress=silent)
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", output_loading_info=True
    )
    assert type(model).__module__.startswith("transformers.models.")
    assert not any(report.values()), report
    assert model.config.num_key_value_heads == 1
    wanted = AutoModelForCausalLM.from_pretrained(folder)(PROMPT).logits
    torch.testing.assert_close(model(PROMPT).logits, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "xglm"])
def test_a_width_that_is_left_to_the_class_needs_no_number(model_type, tmp_path):
    """GPT-2 writes `n_inner: null`; XGLM calls the width of the stream `d_model`."""
    target = tiny_prunable(model_type, **({"n_inner": None} if model_type == "gpt2" else {}))
    export_folder(target, byte_tokenizer(), masks_of("keep-all", target.layout), tmp_path / "ours")
    convert(ConvertConfig(tmp_path / "ours", "plain", tmp_path / "plain"), progress=silent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(model).__module__.startswith("transformers.models.")
    assert torch.equal(model(PROMPT).logits, target.model(PROMPT).logits)


def test_weights_that_are_unpacked_take_the_place_of_the_packed_ones(tmp_path):
    folder = uniform_folder("mixtral", tmp_path / "ours", "40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    convert(ConvertConfig(folder, "plain", tmp_path / "plain"), progress=silent)
    assert [path.name for path in (tmp_path / "plain").glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("model_type", "whole", "says"),
    [
        ("helium", (), "ties another width"),
        ("qwen3_5_text", (), "a hybrid's blocks have several kinds"),
        ("llama", (1,), r"heads differs between blocks \(1, 2\); prune with --for anywhere"),
    ],
)
def test_heads_that_the_original_class_cannot_have_are_refused(model_type, whole, says, tmp_path):
    folder = uniform_folder(model_type, tmp_path / "ours", whole=whole)
    with pytest.raises(InputError, match=says):
        convert(ConvertConfig(folder, "plain", tmp_path / "plain"), progress=silent)
    assert not (tmp_path / "plain").exists()


def test_lost_branches_are_nothing_for_the_original_class(tmp_path):
    folder = blocks_that_differ(tmp_path / "ours")
    with pytest.raises(InputError, match="whole branches are pruned"):
        convert(ConvertConfig(folder, "plain", tmp_path / "plain"), progress=silent)


def test_heads_that_are_cut_fit_no_nemotron_nas(tmp_path):
    folder = uniform_folder("llama", tmp_path / "ours")
    with pytest.raises(InputError, match="heads are cut"):
        convert(ConvertConfig(folder, "nemotron-nas", tmp_path / "nas"), progress=silent)


def test_pruned_uniformly_it_loads_without_our_code(llama_folder, text_file, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    flags = (
        "--for",
        "anywhere",
        "--sites",
        "mlp_mid",
        "heads",
        "--method",
        "random",
        "--keep",
        0.5,
    )
    must_run("prune", llama_folder, "--text", text_file, "--output-dir", run, *SMALL, *flags)
    must_run("convert", run / "keep-0.5", "--to", "plain", "--output-dir", plain)
    config = json.loads((plain / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "per_layer_config" not in config
    found = fresh.load_and_generate(plain, without=True)
    assert found["module"].startswith("transformers.models.llama.")
