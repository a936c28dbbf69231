"""Every program that `--for` names, for every kind of structure: its format, or one line."""

import json

import gguf
import pytest
import torch
from configurations import ARCHITECTURES, KINDS, cases
from conftest import byte_tokenizer, tiny_model, tiny_prunable
from in_memory import export_folder
from transformers import AutoConfig, AutoModelForCausalLM

import disp_llm
from disp_llm.commands.engines import formats_of
from disp_llm.config.engines import DEMANDS
from disp_llm.config.errors import InputError
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.runs.progress import silent


@pytest.mark.parametrize("engine", DEMANDS)
@pytest.mark.parametrize("model_type", KINDS)
def test_it_is_made_and_read_or_refused_in_one_line(model_type, engine, tmp_path):
    text, refused = "A model may be pruned for a program that is to run it. " * 40, None
    try:
        result = disp_llm.prune(
            tiny_model(model_type), byte_tokenizer(), text=text, keep=0.8, method="fisher",
            for_=engine, calibration_sequences=1, calibration_length=16, context=16, windows=1,
            rounds=0, align=1 if engine != "nemotron-nas" else 0, progress=silent,
            output_dir=tmp_path / "run",
        )  # fmt: skip
    except InputError as error:
        refused = error
    if refused is not None:
        assert "\n" not in str(refused)
        assert engine not in ("transformers", "vllm"), "which run every folder"
        assert not (tmp_path / "run" / "keep-0.8").exists(), "it has learned in vain"
        return
    (size,) = result.figures["models"]
    folder, form = size.get("converted", size["folder"]), DEMANDS[engine].format
    assert form == "folder" or form in size["formats"]
    card = (result.folder / "keep-0.8" / "README.md").read_text()
    assert all(f"- `{name}`: " in card for name in size.get("formats", []))
    if form == "gguf":
        gguf.GGUFReader(f"{folder}/model.gguf")
    elif form == "nemotron-nas":
        assert AutoConfig.from_pretrained(folder, trust_remote_code=True).block_configs
    else:
        AutoModelForCausalLM.from_pretrained(folder)
        stated = json.loads((result.folder / "keep-0.8" / "config.json").read_text())
        cut = {
            site
            for site, widths in stated["disp_llm"]["widths"].items()
            if min(widths) < size["widths_full"].get(site, 1)
        }
        assert cut <= {*DEMANDS[engine].sites}


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_what_can_hold_a_folder_is_known_of_every_architecture(model_type, tmp_path):
    """MLP channels alone are cut, so that only the architecture may stand in the way."""
    target = tiny_prunable(model_type)
    inside = PrunableModel(target.model, target.family, ("mlp_mid",))
    budget = Budget(inside.layout, sites=inside.sites, uniform=True)
    scores = torch.rand(inside.layout.entries, generator=torch.Generator().manual_seed(0))
    masks = Masks(inside.layout, project(scores, budget, 0.9, 8).kept, Selection(scores))
    export_folder(inside, byte_tokenizer(), masks, tmp_path / "model")
    found = formats_of(tmp_path / "model")
    assert set(found) <= {"gguf", "nemotron-nas", "plain"}
    assert "gguf" not in found or model_type == "llama"
