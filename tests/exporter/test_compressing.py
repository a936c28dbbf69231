"""A quantised folder holds what compressed-tensors reads and says so; others refuse it."""

import json
import re
import shutil
import sys

import fresh
import pytest
import torch
import transformers
from conftest import byte_tokenizer, masks_of, must_refuse, must_run, run_command, tiny_prunable
from in_memory import export_folder
from safetensors.torch import load_file

from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig
from disp_llm.models.loading import load
from disp_llm.runs.progress import silent
from disp_llm.runs.sums import write_sums


@pytest.fixture(scope="module")
def compressed_tensors():
    return pytest.importorskip("compressed_tensors", reason="quantising needs it, an extra")


@pytest.fixture
def folder(wide_folder):
    return wide_folder


def quantised(folder, kind, place):
    """The quantised folder, and which of its linear layers are not."""
    convert(ConvertConfig(folder, kind, place), progress=silent)
    stated = json.loads((place / "config.json").read_text())["quantization_config"]
    return place, [name for name in stated["ignore"] if name != "lm_head"]


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight as integers say it, with a scale for each row, or for each 32 of a row, that its
    largest number asks for."""
    size, most = (32, 7.5) if bits == 4 else (weight.shape[1], 127.5)
    groups = weight.float().unflatten(1, (-1, size))
    scale = (groups.abs().amax(-1, keepdim=True) / most).to(weight.dtype).float()
    whole = (groups / scale).round().clamp(-int(most) - 1, int(most))
    return (whole * scale).flatten(1).to(weight.dtype)


@pytest.mark.usefixtures("compressed_tensors")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weights_are_rounded_and_everything_else_stays(kind, folder, tmp_path):
    made, left = quantised(folder, kind, tmp_path / "made")
    before, after = (load_file(one / "model.safetensors") for one in (folder, made))
    assert left == []
    sizes = [(one / "model.safetensors").stat().st_size for one in (folder, made)]
    assert sizes[1] < sizes[0]
    stored = [name for name in before if name.endswith("_proj.weight")]
    assert len(stored) == 21
    for name in set(before) - set(stored):
        assert torch.equal(before[name], after[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    model(torch.ones(1, 4, dtype=torch.long))  # unpacks it
    for name in stored:
        weight, plain = model.get_parameter(name), rounded(before[name], int(kind[3:]))
        if kind == "int8":
            assert torch.equal(weight, plain)
        else:  # the best of several scales
            lost = [(one - before[name]).float().square().sum() for one in (weight, plain)]
            assert lost[0] < 0.9 * lost[1]
            groups = weight.unflatten(1, (-1, 32)).flatten(0, 1)
            assert max(len(group.unique()) for group in groups) <= 16
    kept = {path.name for path in folder.iterdir()}
    assert {path.name for path in made.iterdir()} == kept
    changed = {"model.safetensors", "config.json", "README.md", "card.json", "SHA256SUMS"}
    for name in kept - changed:
        assert (folder / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.usefixtures("compressed_tensors")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_it_is_verified_measured_and_loaded_without_the_package(kind, folder, tmp_path, text_file):
    made, _ = quantised(folder, kind, tmp_path / "made")
    must_run("verify", made)
    flags = ("--text", text_file, "--windows", 2, "--context", 32, "--json")
    asked = [run_command("eval", one, *flags) for one in (folder, made)]
    assert all(one.returncode == 0 for one in asked), [one.stderr for one in asked]
    before, after = (json.loads(one.stdout) for one in asked)
    assert after["perplexity"] != before["perplexity"]
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=0.5)
    assert after["parameters"] == before["parameters"]
    found = [fresh.load_and_generate(made, without) for without in (False, True)]
    assert found[0]["tokens"] == found[1]["tokens"]
    must_run("convert", made, "--to", "folder", "--output-dir", tmp_path / "saved")
    must_run("verify", tmp_path / "saved")


@pytest.mark.usefixtures("compressed_tensors")
def test_the_card_says_what_was_done(folder, tmp_path):
    made, _ = quantised(folder, "int4", tmp_path / "made")
    card = (made / "README.md").read_text()
    assert "rounded to 4 bits, a scale for 32 inputs" in card
    assert "compressed-tensors" in card
    assert f"{(made / 'model.safetensors').stat().st_size:,}" in card
    facts = json.loads((made / "card.json").read_text())
    how = "4 bits, a scale for 32 inputs"
    assert facts["result"]["quantised"] == {"how": how, "layers": 21}


@pytest.mark.usefixtures("compressed_tensors")
def test_a_folder_that_others_have_trained_and_saved_needs_no_card(folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "tuned")
    byte_tokenizer().save_pretrained(tmp_path / "tuned")
    made, left = quantised(tmp_path / "tuned", "int4", tmp_path / "made")
    wanted, _ = quantised(folder, "int4", tmp_path / "wanted")
    assert left == []
    assert not (made / "README.md").exists()
    must_run("verify", made)
    tensors, others = (load_file(one / "model.safetensors") for one in (made, wanted))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.usefixtures("compressed_tensors")
def test_widths_that_do_not_fit_are_refused(odd_folder, tmp_path):
    complaint = "3 layers cannot be stored so (model.layers.1.mlp"
    with pytest.raises(InputError, match=re.escape(complaint)):
        quantised(odd_folder, "int4", tmp_path / "made")
    assert quantised(odd_folder, "int8", tmp_path / "eight")[1] == []


@pytest.mark.usefixtures("compressed_tensors")
def test_files_of_several_parts_are_rewritten_one_by_one(folder, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(folder, parts)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (parts / "model.safetensors").unlink()
    model.save_pretrained(parts, max_shard_size="200KB")
    write_sums(parts)
    assert len(list(parts.glob("*.safetensors"))) > 1
    made, _ = quantised(parts, "int4", tmp_path / "made")
    whole, _ = quantised(folder, "int4", tmp_path / "whole")
    index = json.loads((made / "model.safetensors.index.json").read_text())
    tensors = load_file(whole / "model.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(made / file)[name], tensors[name])
    transformers.AutoModelForCausalLM.from_pretrained(made)


@pytest.mark.usefixtures("compressed_tensors")
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_in_different_parts_keep_their_own_scales(tied, tmp_path):
    target = tiny_prunable("llama", tie_word_embeddings=tied)
    masks, made = masks_of("keep-all", target.layout), dict[str, dict[str, torch.Tensor]]()
    for size in ("5GB", "20KB"):
        export_folder(target, byte_tokenizer(), masks, tmp_path / size, size)
        config = ConvertConfig(tmp_path / size, "int8", tmp_path / f"int8 {size}", embeddings=True)
        convert(config, progress=silent)
        made[size] = {}
        for path in (tmp_path / f"int8 {size}").glob("*.safetensors"):
            made[size] |= load_file(path)
    assert len(list((tmp_path / "20KB").glob("*.safetensors"))) > 2
    assert made["5GB"].keys() == made["20KB"].keys()
    assert all(torch.equal(made["5GB"][name], made["20KB"][name]) for name in made["5GB"])
    ends = (made["5GB"][f"{end}.weight_scale"] for end in ("model.embed_tokens", "lm_head"))
    assert torch.equal(*ends) == tied


@pytest.mark.usefixtures("compressed_tensors")
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gemma4_text", "minicpm3"])
def test_an_embedding_that_scales_is_read_with_its_scale(model_type, tmp_path):
    """compressed-tensors makes a weight of the scale, and no file holds one."""
    target, folder = tiny_prunable(model_type), tmp_path / "folder"
    export_folder(target, byte_tokenizer(), masks_of("keep-all", target.layout), folder)
    for name, ends in (("blocks", False), ("all", True)):
        config = ConvertConfig(folder, "int8", tmp_path / name, embeddings=ends)
        convert(config, progress=silent)
    machine, tokens = PlaceConfig("cpu", "float32"), torch.arange(4, 36)[None]
    blocks, whole = (load(str(tmp_path / name), machine).model for name in ("blocks", "all"))
    assert whole.num_parameters() == blocks.num_parameters()
    scales = [model.get_buffer("model.embed_tokens.embed_scale") for model in (blocks, whole)]
    assert torch.equal(*scales)
    before, after = blocks(tokens).logits, whole(tokens).logits
    assert 0 < (after - before).norm() < 0.2 * before.norm()


@pytest.mark.usefixtures("compressed_tensors")
def test_commands_that_cannot_use_it_say_so_in_one_line(folder, tmp_path, text_file):
    made, _ = quantised(folder, "int8", tmp_path / "made")
    for arguments in (
        ("bench", made, "--against", folder),
        ("recover", made, "--text", text_file, "--output-dir", tmp_path / "recovered"),
        ("convert", made, "--to", "int4", "--output-dir", tmp_path / "again"),
    ):
        done = must_refuse(*arguments)
        said = done.stderr.splitlines()[-1]
        assert said.startswith(("disp-llm: FOLDER: ", "disp-llm: MODEL: "))
        assert "is quantised compressed-tensors; name the model that it was made from" in said
    done = must_refuse("convert", made, "--to", "gguf", "--output-dir", tmp_path / "small")
    assert "is quantised, and its weights are no numbers by themselves" in done.stderr


@pytest.mark.usefixtures("compressed_tensors")
def test_places_that_cannot_be_written_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"output_dir: .* lies inside the folder"):
        quantised(folder, "int8", folder / "inside")
    with pytest.raises(InputError, match=r"output_dir: .* is a folder"):
        quantised(folder, "int8", tmp_path)
    with pytest.raises(InputError, match="is not an exported folder"):
        quantised(folder.parents[1] / "dense", "int8", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_without_the_library_one_line_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    monkeypatch.setitem(sys.modules, "compressed_tensors.quantization", None)
    with pytest.raises(InputError, match="to: needs compressed-tensors, which is not installed"):
        quantised(folder, "int8", tmp_path / "made")


@pytest.mark.usefixtures("compressed_tensors")
@pytest.mark.parametrize("model_type", ["minicpm3", "doge"])
def test_layers_inside_attention_are_stored_as_training_rounds_them(model_type, tmp_path):
    target = tiny_prunable(model_type)
    export_folder(target, byte_tokenizer(), masks_of("random", target.layout), tmp_path / "folder")
    made, _ = quantised(tmp_path / "folder", "int8", tmp_path / "made")
    names = {module: name for name, module in target.model.named_modules()}
    stored = {name for name in load_file(made / "model.safetensors") if "weight_scale" in name}
    assert stored == {f"{names[linear]}.weight_scale" for linear in target.linears()}
    assert any(branch.inside for _, branch in target.present)
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    model(torch.ones(1, 4, dtype=torch.long))
