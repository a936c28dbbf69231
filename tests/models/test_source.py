"""What a model is known by: everything that is read of it, or its commit on the hub."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import byte_tokenizer, tiny_model
from damage import outcome
from huggingface_hub import constants

from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load
from disp_llm.models.source import base_and_license, cached_folder, fingerprint_of, source_of

CPU = MachineConfig(device="cpu", dtype="float32")
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_any_flipped_byte_is_another_revision(folder):
    """Or an index that cannot be read."""
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 1
    before = source_of(str(folder), None)["revision"]
    assert before.startswith("sha256:")
    seen = set()
    for name in (*FILES, *shards, "model.safetensors.index.json"):
        content = (folder / name).read_bytes()
        for place in (0, len(content) // 3, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            seen.add(str(outcome(lambda: source_of(str(folder), None))))
        (folder / name).write_bytes(content)
    assert str(source_of(str(folder), None)) not in seen
    assert source_of(str(folder), None)["revision"] == before


def test_what_is_not_read_and_where_it_lies_do_not_matter(folder, tmp_path):
    before = source_of(str(folder), None)["revision"]
    (folder / "README.md").write_text("A model.")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert source_of(str(moved), None) == {"model": str(moved), "revision": before}


def test_a_model_of_the_hub_is_of_one_commit_and_known_by_it(folder, tmp_path, monkeypatch):
    place, commit, other = tmp_path / "hub" / "models--somebody--tiny", "0" * 40, "1" * 40
    for name, seed in ((commit, 0), (other, 1)):
        tiny_model("llama", seed).save_pretrained(place / "snapshots" / name)
        byte_tokenizer().save_pretrained(place / "snapshots" / name)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = load("somebody/tiny", CPU)
    assert found.source == {"model": "somebody/tiny", "revision": commit}
    assert cached_folder(Path("somebody/other")) is None
    older = load(f"somebody/tiny@{other}", CPU)
    assert older.source == {"model": f"somebody/tiny@{other}", "revision": other}
    assert fingerprint_of(older.model) != fingerprint_of(found.model)

    tokenizers = transformers.AutoTokenizer.from_pretrained

    def moves_on(*arguments, **options):
        """Somebody publishes another commit between two files."""
        (place / "refs" / "main").write_text(other)
        return tokenizers(*arguments, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", moves_on)
    again = load("somebody/tiny", CPU)
    assert fingerprint_of(again.model) == fingerprint_of(found.model)
    assert again.source["revision"] == commit


def test_a_model_in_memory_is_known_by_its_weights_and_buffers():
    model = tiny_model("llama")
    before = fingerprint_of(model)
    assert fingerprint_of(tiny_model("llama")) == before
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed = fingerprint_of(model)
    model.model.rotary_emb.inv_freq += 1
    assert len({before, changed, fingerprint_of(model)}) == 3
    assert fingerprint_of(tiny_model("llama").to(torch.bfloat16)) == before  # `dtype` tells it


def test_a_card_that_cannot_be_read_tells_nothing(folder):
    (folder / "README.md").write_text("---\nlicense: mit\ntitle: a: b\n---\n")
    assert base_and_license(str(folder)) == ("", "")
