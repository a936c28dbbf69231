"""Bytes that are counted are those on disk, and quantised layers are what their integers say."""

import json
import struct
import sys

import pytest
import torch
from conftest import masks_of, tiny_model, tiny_prunable

from disp_lab.comparison.baseline_context import cache_bytes, stored_bytes
from disp_lab.comparison.quantised import quantised
from disp_llm.config.errors import InputError
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.prunable import PrunableModel

WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Widths that groups of 32 divide."""


def bytes_on_disk(model, folder) -> int:
    """Of the tensors, without the header."""
    model.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length))
    return path.stat().st_size - 8 - length


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_stored_bytes_are_those_of_the_folder(tied, pruned, tmp_path):
    target = tiny_prunable("llama", tie_word_embeddings=tied)
    model = compact_model(target, masks_of("random", target.layout)) if pruned else target.model
    assert stored_bytes(model) == bytes_on_disk(model, tmp_path)


def test_the_cache_holds_keys_and_values_of_every_token():
    model = tiny_model("llama")
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    for tokens in (1, 20):
        assert cache_bytes(model, tokens) == numbers * tokens * 4
    assert cache_bytes(model.to(torch.bfloat16), 20) == numbers * 20 * 2


def test_without_torchao_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match="int8: needs torchao, which is not installed"):
        quantised(tiny_prunable("llama"), "int8")


@pytest.fixture
def torchao():
    pytest.importorskip("torchao", reason="quantising needs torchao, an extra")


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_is_close_and_as_small_as_its_parts(kind):
    target = tiny_prunable("llama", **WIDE)
    before = stored_bytes(target.model)
    made, left_out = quantised(target, kind)
    tokens = torch.randint(4, 320, (2, 19))
    wanted, got = (one.model(tokens).logits for one in (target, made))
    off = float((got - wanted).abs().max() / wanted.abs().max())
    assert 0 < off < {"int8": 0.1, "int4": 0.9}[kind]
    assert left_out == 0
    assert all(type(layer.weight.data) is torch.Tensor for layer in target.linears())
    if kind == "int8":  # a byte a weight; four and one for the scale and the zero of a row
        weights = [layer.weight for layer in target.linears()]
        saved = sum(3 * weight.numel() - 5 * len(weight) for weight in weights)
        assert before - stored_bytes(made.model) == saved
    else:
        assert stored_bytes(made.model) < stored_bytes(quantised(target, "int8")[0].model)


@pytest.mark.usefixtures("torchao")
def test_layers_that_groups_do_not_divide_stay_as_they_are():
    target = tiny_prunable("llama", hidden_size=64, intermediate_size=48)
    made, left_out = quantised(target, "int4")
    assert left_out == len(target.blocks)  # `down_proj`, whose inputs are 48
    for old, new in zip(target.blocks, made.blocks, strict=True):
        assert torch.equal(old.mlp.down_proj.weight, new.mlp.down_proj.weight)
    assert torch.isfinite(made.model(torch.ones(1, 4, dtype=torch.long)).logits).all()


@pytest.mark.usefixtures("torchao")
def test_a_model_without_such_layers_is_refused():
    with pytest.raises(InputError, match="no layer of gpt2 can be stored so"):
        quantised(tiny_prunable("gpt2"), "int8")


@pytest.mark.usefixtures("torchao")
def test_a_pruned_model_is_quantised_too():
    target = tiny_prunable("llama", **WIDE)
    compact = compact_model(target, masks_of("random", target.layout))
    made, _ = quantised(PrunableModel(compact, target.family), "int8")
    assert stored_bytes(made.model) < stored_bytes(compact)
    assert torch.isfinite(made.model(torch.ones(1, 4, dtype=torch.long)).logits).all()


def test_states_in_the_place_of_keys_and_values_count():
    model = tiny_model("bamba")
    more = cache_bytes(model, 20) - cache_bytes(model, 10)
    keys_and_values = 2 * 2 * 8 * 10 * 4  # of the one attention, for 10 tokens
    assert more == keys_and_values
    assert cache_bytes(model, 10) - more == 2 * 4 * (96 * 4 + 8 * 8 * 16)
