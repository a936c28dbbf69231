"""What a model is known by: everything that is read of it, or its commit on the hub."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from huggingface_hub import constants

from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load
from disp_llm.models.source import fingerprint_of, source_of

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_any_flipped_byte_is_another_revision(folder):
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 1
    before = source_of(str(folder))["revision"]
    assert before.startswith("sha256:")
    seen = {before}
    for name in (*FILES, *shards, "model.safetensors.index.json"):
        content = (folder / name).read_bytes()
        for place in (0, len(content) // 3, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            seen.add(source_of(str(folder))["revision"])
        (folder / name).write_bytes(content)
    assert len(seen) == 1 + 3 * (len(FILES) + len(shards) + 1)
    assert source_of(str(folder))["revision"] == before


def test_what_is_not_read_and_where_it_lies_do_not_matter(folder, tmp_path):
    before = source_of(str(folder))["revision"]
    (folder / "README.md").write_text("A model.")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert source_of(str(moved)) == {"model": str(moved), "revision": before}


def test_a_model_of_the_hub_is_known_by_its_commit(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = load("somebody/tiny", MachineConfig(device="cpu", dtype="float32"))
    assert found.source == {"model": "somebody/tiny", "revision": commit}
    assert source_of("somebody/other")["revision"] == ""


def test_a_model_in_memory_is_known_by_its_weights_and_buffers():
    model = tiny_model("llama")
    before = fingerprint_of(model)
    assert fingerprint_of(tiny_model("llama")) == before
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed = fingerprint_of(model)
    model.model.rotary_emb.inv_freq += 1
    assert len({before, changed, fingerprint_of(model)}) == 3
    half = tiny_model("llama").to(torch.bfloat16)
    assert fingerprint_of(half) != before
