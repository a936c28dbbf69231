"""A folder that is made from file to file is, to the byte, the one that is made in memory."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from configurations import ARCHITECTURES, cases
from conftest import byte_tokenizer, masks_of, sites_with, tiny_model
from huggingface_hub import constants
from in_memory import export_folder
from safetensors.torch import load_file, save_file
from wrapping import tiny_wrapper

from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.exporter import folders
from disp_llm.exporter.cutting import fold_into_weights
from disp_llm.exporter.folders import stream_folder
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter, Compensation, Masks, Selection
from disp_llm.models.architectures import WRAPPERS
from disp_llm.models.checkpoint import Checkpoint, load_unread
from disp_llm.models.loading import load
from disp_llm.runs.files import atomic
from disp_llm.runs.sums import read_sums, write_sums
from disp_llm.runs.tensors import write_lazily

CASES = cases(ARCHITECTURES)
ONE_FILE, SEVERAL = "5GB", "20KB"


def saved(model_type: str, folder: Path, shard: str = ONE_FILE) -> Path:
    model = (tiny_wrapper if model_type in WRAPPERS else tiny_model)(model_type)
    model.save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer().save_pretrained(folder)
    if model_type in WRAPPERS:
        (folder / "preprocessor_config.json").write_text('{"patch_size": 4}')
    return folder


def prunable(loaded, branches: bool = True) -> PrunableModel:
    """With KV heads, whole branches and whole experts as sites, where the family can lose them."""
    family = loaded.family
    sites = sites_with(family.can_lose_heads, branches, family.experts is not None)
    return PrunableModel.of(loaded, sites)


def masks_for(dense: PrunableModel, *kinds: str) -> Masks:
    """Random masks; the second block has no attention, the third no MLP, every block has lost a
    head; with random scales, mean inputs and adapters, of learned weights too, as far as `kinds`
    names them."""
    layout, noise = dense.layout, torch.Generator().manual_seed(0)
    kept = masks_of("random", layout).kept
    for name, part in zip(layout.names, layout.split(kept), strict=True):
        if len(part) == 1:
            part[:] = name not in ("layers.1.attention", "layers.2.mlp")
        elif name.endswith("heads"):
            part[:] = torch.arange(len(part)) > 0
    scales = torch.rand(layout.entries, generator=noise) + 0.5
    means = torch.randn(sum(block.q + block.intermediate for block in layout.blocks))
    adapters = tuple(
        Adapter(
            torch.randn(3, inputs, generator=noise),
            torch.randn(outputs, 3, generator=noise),
            torch.randn(outputs, inputs, generator=noise),
        )
        for inputs, outputs in (widths_of(linear) for linear in dense.linears())
    )
    found = Compensation(
        scales if "scales" in kinds else None,
        means if "means" in kinds else None,
        adapters if "adapters" in kinds else (),
    )
    return Masks(layout, layout.without_dropped(kept), Selection(scales, found))


def assert_same(source: str, folder: Path, masks_kinds: tuple[str, ...], dtype: str, shard: str):
    """All ways give the same files: weights, index, configuration, code, tokenizer."""
    machine = MachineConfig(device="cpu", dtype=dtype)
    loaded = load(source, machine, dense_only=True)
    dense = prunable(loaded)
    masks = masks_for(dense, *masks_kinds)
    with fold_into_weights(dense, masks):
        export_folder(dense, loaded.tokenizer, masks, folder / "memory", shard)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(folders, "MAX_SHARD", shard)
    with atomic(folder / "from memory") as written:
        read = dense.model.state_dict().__getitem__
        stream_folder(dense, masks, read, loaded.tokenizer, written)
        write_sums(written)
    sums = read_sums(folder / "memory")
    assert len(sums) >= 7
    assert read_sums(folder / "from memory") == sums
    empty, checkpoint = load_unread(source, machine)
    if checkpoint is None:  # files with other names or parts: the model is loaded whole
        monkeypatch.undo()
        pytest.skip("transformers converts these files while it loads them")
    assert {p.device.type for p in empty.model.parameters()} == {"meta"}
    unread = prunable(empty)
    assert unread.layout == dense.layout
    with atomic(folder / "streamed") as written:
        stream_folder(unread, masks, checkpoint.read, empty.tokenizer, written)
        write_sums(written)
    monkeypatch.undo()
    assert read_sums(folder / "streamed") == sums
    return folder / "streamed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", CASES)
def test_every_family(model_type, dtype, tmp_path):
    """From one file to several and the other way round."""
    shards = (ONE_FILE, SEVERAL) if dtype == "float32" else (SEVERAL, ONE_FILE)
    source = saved(model_type, tmp_path / "model", shards[0])
    folder = assert_same(str(source), tmp_path, ("scales", "adapters"), dtype, shards[1])
    files = [len(list(place.glob("*.safetensors"))) for place in (source, folder)]
    assert [count > 1 for count in files] == [shard == SEVERAL for shard in shards]


@pytest.mark.parametrize("model_type", cases(sorted(WRAPPERS)))
def test_every_wrapper(model_type, tmp_path):
    """With what is no tensor of its language model, and the file of its processor."""
    source = saved(model_type, tmp_path / "model", SEVERAL)
    folder = assert_same(str(source), tmp_path, ("scales", "adapters"), "bfloat16", ONE_FILE)
    assert (folder / "preprocessor_config.json").read_text() == '{"patch_size": 4}'


@pytest.mark.parametrize("kinds", [(), ("means",), ("scales", "means", "adapters")])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "phi3"])
def test_mean_inputs_become_biases(model_type, kinds, tmp_path):
    """Where layers have biases, and where they gain them."""
    source = saved(model_type, tmp_path / "model")
    folder = assert_same(str(source), tmp_path, kinds, "bfloat16", ONE_FILE)
    biases = [name for name in load_file(folder / "model.safetensors") if name.endswith("bias")]
    assert bool(biases) == (bool(kinds) or model_type in ("gpt2", "opt"))


def test_gpt2_as_it_is_published(tmp_path):
    """Without the base model's prefix, and with buffers that no model reads any more."""
    source = saved("gpt2", tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    assert "wte.weight" in bare
    assert_same(str(source), tmp_path, ("scales",), "float32", SEVERAL)


@pytest.mark.parametrize("alike", [True, False])
def test_a_tied_head_that_the_file_also_holds_counts_once_if_it_is_alike(alike, tmp_path):
    folder = saved("llama", tmp_path)
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if alike else 1)
    save_file(tensors, path, {"format": "pt"})
    machine = MachineConfig(device="cpu", dtype="float32")
    unread, files = load_unread(str(folder), machine)
    assert files is not None
    assert unread.model.num_parameters() == load(str(folder), machine).model.num_parameters()
    assert (unread.model.num_parameters() == model.num_parameters()) == alike


def test_a_head_that_only_the_configuration_ties_stays(tmp_path):
    source = saved("llama", tmp_path / "model")
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    said = source / "config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"tie_word_embeddings": True}))
    folder = assert_same(str(source), tmp_path, (), "float32", ONE_FILE)
    assert torch.equal(load_file(folder / "model.safetensors")["lm_head.weight"], head)
    for place in (source, folder):
        model = load(str(place), MachineConfig(device="cpu", dtype="float32")).model
        model.tie_weights()  # as lm-eval does
        assert torch.equal(model.get_output_embeddings().weight, head)


def test_a_model_of_the_hub(tmp_path, monkeypatch):
    commit, place = "0" * 40, tmp_path / "hub" / "models--somebody--tiny"
    saved("llama", place / "snapshots" / commit, SEVERAL)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert_same("somebody/tiny", tmp_path, ("scales",), "float32", ONE_FILE)


def test_tensors_that_lie_in_parts_are_not_read_so(tmp_path):
    """A file of Mixtral has each expert by itself, the model all of them in one tensor."""
    source = str(saved("mixtral", tmp_path))
    assert load_unread(source, MachineConfig(device="cpu", dtype="float32"))[1] is None


def test_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Nothing that was read for one tensor is still there when another is made."""
    alive: list[weakref.ref] = []
    read = Checkpoint.read

    def watched(self, name: str) -> torch.Tensor:
        held = [one() for one in alive if one() is not None]
        assert len(held) <= 1, name  # a bias that is read beside its weight
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", watched)
    source = saved("opt", tmp_path / "model")
    assert_same(str(source), tmp_path, ("scales", "means", "adapters"), "bfloat16", ONE_FILE)
    assert len(alive) > 30


def test_what_comes_after_reading_the_headers_is_noticed(tmp_path):
    """A number that is not finite, and a file that is gone or cut short since it was looked at."""
    source = saved("llama", tmp_path / "model")
    empty, checkpoint = load_unread(str(source), MachineConfig(device="cpu", dtype="float32"))
    assert checkpoint is not None
    name, file = "model.layers.1.mlp.up_proj.weight", source / "model.safetensors"
    weights, whole = load_file(file), file.read_bytes()
    weights[name][0, 0] = torch.nan
    save_file(weights, file)
    with pytest.raises(InputError, match=f"not finite numbers: {name}"):
        checkpoint.read(name)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read") as raised:
        checkpoint.read(name)
    assert raised.value.field == str(file)
    file.unlink()
    dense = prunable(empty)
    arguments = (dense, masks_for(dense), checkpoint.read, empty.tokenizer)
    with pytest.raises(InputError, match="cannot be read"), atomic(tmp_path / "made") as written:
        stream_folder(*arguments, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_files_are_those_of_safetensors(tmp_path):
    noise = torch.Generator().manual_seed(0)
    tensors = {
        "b.weight": torch.randn(3, 5, generator=noise).bfloat16(),
        "a.weight": torch.randn(4, 2, generator=noise).bfloat16(),
        "norm": torch.randn(7, generator=noise),
        "kept_in": torch.arange(6),
        "half": torch.randn(3, generator=noise).half(),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "whole", metadata={"format": "pt"})
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return tensors[name]

    write_lazily(tmp_path / "lazily", shapes, make, {"format": "pt"})
    assert (tmp_path / "lazily").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(made) == sorted(tensors)
