"""A model loads whole or not at all, and what is wrong with it is said in one line."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from configurations import ARCHITECTURES, cases
from conftest import byte_tokenizer, masks_of, must_refuse, tiny_model, tiny_prunable
from in_memory import export_folder
from safetensors.torch import load_file, save_file

from disp_llm.commands.api import Inputs
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.exporter.cutting import compact_model
from disp_llm.models.embedded import MODEL
from disp_llm.models.loading import load, load_config, load_model

CPU = MachineConfig(device="cpu", dtype="float32")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"
KEPT = "model.layers.1.self_attn.kept_in"

Change = Callable[[Any], Any]


def weights(folder: Path, change: Change) -> None:
    """Changes the tensors of a folder."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def settings(folder: Path, change: Change, file: str = "config.json") -> None:
    """Changes a JSON file of a folder."""
    stated = json.loads((folder / file).read_text())
    change(stated)
    (folder / file).write_text(json.dumps(stated))


def cut_short(file: Path, size: int | None = None) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2 if size is None else size])


def refused(folder: Path | str) -> str:
    """The one line that says why a model does not load."""
    with pytest.raises(InputError) as raised:
        load(str(folder), CPU)
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    return line.replace(str(folder), "FOLDER")


@pytest.fixture
def whole(llama_folder, tmp_path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "whole"))


@pytest.fixture
def sharded(tmp_path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    target = tiny_prunable("llama")
    export_folder(target, byte_tokenizer(), masks_of("random", target.layout), folder, "5GB")
    return folder


@pytest.fixture
def pruned(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "pruned"))


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_every_family_loads_whole_or_not_at_all(model_type, tmp_path):
    target = tiny_prunable(model_type)
    small = compact_model(target, masks_of("random", target.layout))
    folders = {tmp_path / "dense": target.model, tmp_path / "pruned": small}
    for folder, model in folders.items():
        model.save_pretrained(folder)
        found = load_model(str(folder), torch.device("cpu"), torch.float32).state_dict()
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())
        stored = load_file(folder / WEIGHTS)
        indices = [key for key in stored if "kept_" in key]
        assert bool(indices) == (folder.name == "pruned")
        for gone in (next(key for key in stored if ".1." in key and key in found), *indices[-1:]):
            rest = {key: tensor for key, tensor in stored.items() if key != gone}
            save_file(rest, folder / WEIGHTS, metadata={"format": "pt"})
            with pytest.raises(InputError, match=gone):
                load_model(str(folder), torch.device("cpu"), torch.float32)


def test_a_tied_head_is_not_missing_but_its_embedding_is(tmp_path):
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    model = load(str(tmp_path), CPU).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    weights(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert "model.embed_tokens.weight" in refused(tmp_path)


def test_gpt2_as_it_is_published_has_no_prefix_and_more_constants(tmp_path):
    model = tiny_model("gpt2", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)

    def publish(tensors: dict) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        for i in range(3):
            tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool)
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    weights(tmp_path, publish)
    found = load(str(tmp_path), CPU).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_names_of_the_first_few_weights_and_how_many_more(whole):
    gone = [key for key in load_file(whole / WEIGHTS) if "layers.1." in key]
    weights(whole, lambda tensors: [tensors.pop(key) for key in gone])
    named = ", ".join(sorted(gone)[:3])
    assert refused(whole).startswith(f"model: 'FOLDER' lacks weights: {named} and 6 more; copy")


def test_weights_of_another_shape_are_refused_by_name(whole):
    weights(whole, lambda tensors: tensors.update({QUERY: tensors[QUERY][:8].clone()}))
    assert f"other shapes than its config.json says: {QUERY} ([8, 32], not [32" in refused(whole)


def test_more_weights_than_the_configuration_describes_are_another_model(whole):
    settings(whole, lambda config: config.update(num_hidden_layers=2))
    line = refused(whole)
    assert "does not describe: model.layers.2.input_layernorm.weight" in line
    assert "and 6 more" in line


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused_by_name(whole, number):
    weights(whole, lambda tensors: tensors[QUERY].view(-1)[3:4].fill_(float(number)))
    assert f"not finite numbers: {QUERY};" in refused(whole)
    done = must_refuse("eval", whole)
    assert QUERY in done.stderr


def test_a_model_in_memory_is_finite_too():
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight[5, 5] = float("nan")
    inputs = Inputs({"model": model}, byte_tokenizer())
    with pytest.raises(InputError, match=r"not finite numbers: model\.layers\.2\.mlp\.up_proj"):
        inputs.load("tiny", CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(KEPT), "is missing, or no sorted selection"),
        (lambda t: t.update({KEPT: t[KEPT].flip(0)}), "no sorted selection of 32"),
        (lambda t: t[KEPT].__setitem__(0, int(t[KEPT][1])), "no sorted selection of 32"),
        (lambda t: t[KEPT].__setitem__(0, -1), "no sorted selection of 32"),
        (lambda t: t[KEPT].__setitem__(-1, 32), "no sorted selection of 32"),
    ],
)
def test_indices_that_select_nothing_are_refused_by_name(pruned, change, said):
    weights(pruned, change)
    line = refused(pruned)
    assert said in line
    assert KEPT in line


def test_code_that_travels_refuses_damaged_indices_too(pruned):
    """`trust_remote_code` elsewhere runs the same classes, without any check of ours."""
    weights(pruned, lambda tensors: tensors.pop(KEPT))
    with pytest.raises(ValueError, match=f"{KEPT} is missing"):
        transformers.AutoModelForCausalLM.from_pretrained(pruned)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["widths"]["attn_in"].__setitem__(1, "a"),
        lambda d: d["widths"]["attn_in"].__setitem__(1, 0),
        lambda d: d["widths"]["attn_in"].__setitem__(1, 33),
        lambda d: d["widths"]["mlp_mid"].__setitem__(1, 48),
        lambda d: d["widths"]["mlp_out"].pop(),
        lambda d: d["widths"].pop("mlp_in"),
        lambda d: d["widths"].update(mlp=[1, 0, 1]),
        lambda d: d["widths"].update(heads=[1, 1, 1]),
        lambda d: d.update(biases=True),
        lambda d: d.update(blocks="layerz"),
        lambda d: d["attention"].update(reads=["self_attn.q_proj"]),
        lambda d: d["attention"].update(gather="mlp"),
        lambda d: d["mlp"].update(fused="2"),
        lambda d: d.clear(),
    ],
)
def test_damaged_widths_are_refused(pruned, change):
    settings(pruned, lambda config: change(config["disp_llm"]))
    assert "FOLDER" in refused(pruned)


NOT_WHOLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (lambda f: cut_short(f / WEIGHTS), "not fully covered"),
    "weights empty": (lambda f: cut_short(f / WEIGHTS, 0), "header"),
    "weights gone": (lambda f: (f / WEIGHTS).unlink(), "has no safetensors"),
    "weights' header": (
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" + (f / WEIGHTS).read_bytes()[1:]), "header",
    ),
    "weights garbage": (lambda f: (f / WEIGHTS).write_bytes(os.urandom(999)), "header"),
    "config cut short": (lambda f: cut_short(f / "config.json"), "is not a valid JSON file"),
    "config gone": (lambda f: (f / "config.json").unlink(), "Unrecognized model"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "Unrecognized model"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "tokenizer cut short": (lambda f: cut_short(f / "tokenizer.json"), "the tokenizer of"),
    "tokenizer empty": (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer of"),
    "tokenizer gone": (lambda f: (f / "tokenizer.json").unlink(), "the tokenizer of"),
    "tokenizer's settings": (lambda f: cut_short(f / "tokenizer_config.json"), "the tokenizer of"),
}  # fmt: skip


@pytest.mark.parametrize("damage", NOT_WHOLE)
def test_a_damaged_folder_gets_one_line(whole, damage):
    do, said = NOT_WHOLE[damage]
    do(whole)
    assert said in refused(whole)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "abc"}, {"hidden_size": -1}, {"hidden_size": 0}, {"hidden_size": None},
        {"num_hidden_layers": -1}, {"num_hidden_layers": 4}, {"num_hidden_layers": [3]},
        {"num_attention_heads": 0}, {"num_key_value_heads": 0}, {"head_dim": 7},
        {"vocab_size": 0}, {"vocab_size": 319},
        {"rope_parameters": {"rope_type": "nope"}}, {"hidden_act": "nope"}, {"dtype": "nope"},
        {"model_type": None}, {"model_type": "gpt2"}, {"model_type": "disp_llama"},
        {"auto_map": 3}, {"get_text_config": 1}, {"attn_implementation": "somebody/attention"},
        {"quantization_config": {}}, {"transformers_weights": "../model.safetensors"},
    ],
)  # fmt: skip
def test_damaged_settings_get_one_line(whole, values):
    settings(whole, lambda config: config.update(values))
    assert "FOLDER" in refused(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(weight_map={QUERY: "x.safetensors"}), "x.safetensors"),
        (
            lambda index: index.update(weight_map={QUERY: "../x.safetensors"}),
            "expected str matching",
        ),
        (lambda index: index.update(weight_map={QUERY: "x.bin"}), "expected str matching"),
        (lambda index: index.update(weight_map={QUERY: 3}), "expected str, got int"),
        (lambda index: index.pop("weight_map"), "missing required field weight_map"),
    ],
)
def test_a_damaged_index_gets_one_line(sharded, change, said):
    assert torch.isfinite(load(str(sharded), CPU).model(torch.tensor([[5]])).logits).all()
    settings(sharded, change, INDEX)
    assert said in refused(sharded)


def test_a_folder_that_lacks_one_of_its_files_names_it(sharded):
    (sharded / "model-00002-of-00007.safetensors").unlink()
    assert "model-00002-of-00007.safetensors" in refused(sharded)


def test_a_quantised_model_loads_where_it_is_measured(tmp_path, caplog):
    """Weights in float8 and their scales, which transformers unpacks where there is no GPU."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 32}
    model = tiny_model("llama", **shape)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)

    def quantise(tensors: dict) -> None:
        for key in [key for key in tensors if "_proj" in key]:
            scale = tensors[key].abs().max() / 448
            tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
            tensors[f"{key}_scale_inv"] = scale.view(1, 1)

    weights(tmp_path, quantise)
    stated = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    settings(tmp_path, lambda config: config.update(quantization_config=stated))
    with caplog.at_level(logging.ERROR, "transformers"):
        found = load(str(tmp_path), CPU).model
    for key, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key], rtol=0.07, atol=0.01)
    with pytest.raises(InputError, match="is quantised fp8"):
        load(str(tmp_path), CPU, dense_only=True)
    weights(tmp_path, lambda tensors: tensors.pop(QUERY))
    assert QUERY in refused(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. can't allocate memory: 1e9"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)
def test_too_little_memory_is_not_a_wrong_name(whole, error, monkeypatch):
    def runs_out(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", runs_out)
    with pytest.raises(InputError, match="does not fit into memory; name a smaller model"):
        load(str(whole), CPU)


def test_an_adapter_is_not_a_model(whole):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(whole)
    assert "is an adapter on another model" in refused(whole)


def test_the_embedded_model_is_no_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / MODEL / "keep-0.5").mkdir(parents=True)
    (tmp_path / MODEL / "keep-0.5" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_config(MODEL).model_type == "llama"
