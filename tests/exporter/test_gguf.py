"""Models of whose residual stream nothing was cut: GGUF files, and the plain architecture."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from conftest import (
    SMALL,
    byte_tokenizer,
    masks_of,
    must_run,
    run_command,
    tiny_model,
    tiny_prunable,
)
from in_memory import export_folder
from safetensors.torch import load_file, save_file

from disp_llm.config.errors import InputError
from disp_llm.exporter.formats.gguf import BY_WORDS, check, splitter_of, write_file
from disp_llm.models.loading import load_model
from disp_llm.runs.sums import folder_problems, write_sums

PROMPT = torch.tensor([[5, 60, 7, 33, 100, 12]])


def write_original(folder: Path, path: Path) -> None:
    """The tiny Llama as llama.cpp's converter writes it: names, and rows of q and k by rotation."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens + [f"<{i}>" for i in range(len(tokens), config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges([])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        kind = next((config[h] for part, h in heads.items() if part in name), None)
        if kind is not None:
            halves = tensor.view(kind, 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(own, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def runs(llama_folder, text_file, tmp_path_factory) -> dict[str, Path]:
    """Folders with one width for all blocks, with several, and with more cut than these."""
    root = tmp_path_factory.mktemp("intermediate")
    kinds = {
        "uniform": ["--sites", "mlp_mid", "--align", "24", "--keep", "0.72"],
        "variable": ["--sites", "mlp_mid", "--keep", "0.7"],
        "everywhere": ["--recipe", "disp", "--keep", "0.7"],
    }
    for name, flags in kinds.items():
        must_run(
            "prune", llama_folder, "--text", text_file, "--output-dir", root / name, *SMALL, *flags
        )
    sizes = {name: flags[-1] for name, flags in kinds.items()}
    return {name: root / name / f"keep-{size}" for name, size in sizes.items()}


def widths_of(folder: Path) -> list[int]:
    return json.loads((folder / "config.json").read_text())["disp_llm"]["widths"]["mlp_mid"]


def convert(folder: Path, to: str, place: Path):
    return run_command("convert", folder, "--to", to, "--output-dir", place)


def written(folder: Path, place: Path) -> Path:
    """The file of a folder that llama.cpp can hold."""
    done = convert(folder, "gguf", place)
    assert done.returncode == 0, done.stderr
    return place / "model.gguf"


def test_uniform_widths_are_plain_llama_for_every_reader(runs, tmp_path):
    path = written(runs["uniform"], tmp_path / "small")
    assert set(widths_of(runs["uniform"])) == {24}
    read = read_back(path)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(runs["uniform"])
    torch.testing.assert_close(read(PROMPT).logits, wanted(PROMPT).logits, rtol=0, atol=5e-3)
    assert "llama-cli -m small/model.gguf" in (tmp_path / "small" / "README.md").read_text()
    assert not folder_problems(tmp_path / "small")


def test_a_file_that_lacks_a_tensor_is_refused_by_name(llama_folder, tmp_path):
    folder, gone = tmp_path / "folder", "model.layers.1.mlp.up_proj.weight"
    shutil.copytree(llama_folder, folder)
    write_original(folder, tmp_path / "whole.gguf")
    model = load_model(str(tmp_path / "whole.gguf"), torch.device("cpu"), torch.float32)
    assert gone in model.state_dict()
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(gone)
    save_file(tensors, folder / "model.safetensors")
    write_original(folder, tmp_path / "less.gguf")
    with pytest.raises(InputError, match=f"lacks weights: {gone}"):
        load_model(str(tmp_path / "less.gguf"), torch.device("cpu"), torch.float32)
    whole = (tmp_path / "whole.gguf").read_bytes()
    for size in (0, 4, 1000, len(whole) - 1000, len(whole) - 1):
        (tmp_path / "short.gguf").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot load"):
            load_model(str(tmp_path / "short.gguf"), torch.device("cpu"), torch.float32)


def read_back(path: Path) -> transformers.PreTrainedModel:
    """A GGUF file as transformers reads it."""
    dequantised = getattr(transformers, "GgufConfig", None)
    more = {} if dequantised is None else {"quantization_config": dequantised(dequantize=True)}
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **more
    )


def test_variable_widths_are_deci(runs, tmp_path):
    path, widths = written(runs["variable"], tmp_path / "small"), widths_of(runs["variable"])
    assert len(set(widths)) > 1
    reader = gguf.GGUFReader(path)
    says = {name: field.contents() for name, field in reader.fields.items()}
    assert says["general.architecture"] == "deci"
    assert says["deci.feed_forward_length"] == widths
    assert says["deci.attention.head_count"] == [4] * 3
    assert says["deci.attention.head_count_kv"] == [2] * 3
    assert says["deci.attention.key_length"] == says["deci.attention.value_length"] == 8
    state = load_file(runs["variable"] / "model.safetensors")
    with pytest.raises(InputError, match=r"only llama\.cpp reads from a GGUF file; name the"):
        load_model(str(path), torch.device("cpu"), torch.float32)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(state)
    for i, width in enumerate(widths):
        down = tensors[f"blk.{i}.ffn_down.weight"]
        found = gguf.dequantize(down.data, down.tensor_type)
        assert found.shape == (32, width)
        wanted = state[f"model.layers.{i}.mlp.down_proj.weight"].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_the_vocabulary_is_the_tokenizers(runs, tmp_path):
    reader = gguf.GGUFReader(written(runs["uniform"], tmp_path / "small"))
    says = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs["uniform"])
    tokens = says["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == says["llama.vocab_size"] == 320
    assert (says["tokenizer.ggml.model"], says["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    kinds = says["tokenizer.ggml.token_type"]
    assert [kinds[i] for i in tokenizer.all_special_ids] == [3] * 3
    assert says["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id


BYTES, DIGITS = {"type": "ByteLevel", "use_regex": True}, {"type": "Digits"}
SPLIT = {"type": "Split", "pattern": {"Regex": BY_WORDS}}


@pytest.mark.parametrize(
    ("before", "name"),
    [
        (BYTES, "gpt-2"),
        ({"pretokenizers": [DIGITS | {"individual_digits": True}, BYTES]}, "smollm"),
        ({"pretokenizers": [SPLIT, BYTES | {"use_regex": False}]}, "llama-bpe"),
        ({"pretokenizers": [DIGITS | {"individual_digits": False}, BYTES]}, None),
        (BYTES | {"use_regex": False}, None),
        (BYTES | {"add_prefix_space": True}, None),
        ({"type": "Whitespace"}, None),
        (None, None),
    ],
)
def test_tokenizers_are_known_by_how_they_split(before, name):
    stated = {"model": {"type": "BPE"}, "pre_tokenizer": before}
    if name is not None:
        assert splitter_of(stated) == name
        return
    with pytest.raises(InputError, match=r"whose name in llama\.cpp is not known"):
        splitter_of(stated)
    assert splitter_of(stated | {"model": {"type": "BPE", "byte_fallback": True}}) == ""


def test_a_tokenizer_that_changes_text_first_is_refused():
    """llama.cpp would read other text, such as capitals where the model has never seen any."""
    marks = {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]}
    fallback = {"model": {"type": "BPE", "byte_fallback": True}}
    assert splitter_of(fallback | {"normalizer": marks}) == ""
    lowers = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Replace"}]}
    for stated in (fallback, {"model": {"type": "BPE"}, "pre_tokenizer": BYTES}):
        for normalizer in (lowers, {"type": "Lowercase"}):
            with pytest.raises(InputError, match=r"whose name in llama\.cpp is not known"):
                splitter_of(stated | {"normalizer": normalizer})


def test_scaled_rotary_embeddings_come_along(text_file, tmp_path):
    original, run = tmp_path / "scaled", tmp_path / "run"
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    tiny_model("llama", rope_parameters=rope).save_pretrained(original)
    byte_tokenizer().save_pretrained(original)
    must_run(
        "prune", original, "--sites", "mlp_mid", "--keep", 0.7, "--text", text_file,
        "--output-dir", run, *SMALL,
    )  # fmt: skip
    reader = gguf.GGUFReader(written(run / "keep-0.7", tmp_path / "small"))
    (found,) = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    assert found[0] == 1
    assert found[-1] == pytest.approx(8)


def test_another_activation_is_refused(tmp_path):
    target = tiny_prunable("llama", hidden_act="relu")
    export_folder(target, byte_tokenizer(), masks_of("keep-all", target.layout), tmp_path / "ours")
    with pytest.raises(InputError, match=r"the activation relu, and llama\.cpp's Llama has silu"):
        check(tmp_path / "ours")


def test_trained_attention_and_norms_come_along(runs, text_file, tmp_path):
    """A folder that `recover` has trained differs from the original outside the MLPs, too."""
    must_run(
        "recover", runs["uniform"], "--text", text_file, "--output-dir", tmp_path / "run",
        "--tokens", 512, "--length", 32, "--learning-rate", 0.01, "--distill", 0,
        "--context", 32, "--windows", 2, "--dtype", "float32",
    )  # fmt: skip
    folder = tmp_path / "run" / "model"
    path = written(folder, tmp_path / "gguf")
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = transformers.AutoModelForCausalLM.from_pretrained(runs["uniform"])
    read = read_back(path)
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(wanted.state_dict()[q_proj], before.state_dict()[q_proj])
    torch.testing.assert_close(
        read.state_dict()[q_proj], wanted.state_dict()[q_proj], rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(read(PROMPT).logits, wanted(PROMPT).logits, rtol=0, atol=5e-3)


def test_biases_of_the_original_come_from_the_folder(text_file, tmp_path):
    original, run = tmp_path / "biased", tmp_path / "run"
    tiny_model("llama", mlp_bias=True, attention_bias=True).save_pretrained(original)
    byte_tokenizer().save_pretrained(original)
    must_run(
        "prune", original, "--sites", "mlp_mid", "--keep", 0.7, "--text", text_file,
        "--output-dir", run, *SMALL,
    )  # fmt: skip
    path = written(run / "keep-0.7", tmp_path / "small")
    state = load_file(run / "keep-0.7" / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for i, width in enumerate(widths_of(run / "keep-0.7")):
        up = state[f"model.layers.{i}.mlp.up_proj.bias"].numpy()
        assert up.shape == (width,)
        np.testing.assert_array_equal(tensors[f"blk.{i}.ffn_up.bias"], up)
        q = state[f"model.layers.{i}.self_attn.q_proj.bias"].view(4, 2, -1)
        np.testing.assert_array_equal(tensors[f"blk.{i}.attn_q.bias"], q.transpose(1, 2).flatten())


@pytest.fixture(scope="module")
def headless(text_file, tmp_path_factory) -> Path:
    """A folder of which every block has lost another number of heads, of a model whose heads are
    wider than its stream makes them, with biases."""
    root = tmp_path_factory.mktemp("heads")
    more = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    model = tiny_model("llama", **more, attention_bias=True, mlp_bias=True)
    model.save_pretrained(root / "original")
    byte_tokenizer().save_pretrained(root / "original")
    must_run(
        "prune", root / "original", "--sites", "mlp_mid", "heads", "attention", "mlp",
        "--keep", 0.5, "--method", "random", "--align", 1, "--text", text_file,
        "--output-dir", root / "run", *SMALL,
    )  # fmt: skip
    return root / "run" / "keep-0.5"


def in_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Rows of heads of 8 as llama.cpp rotates them: every one beside its partner."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    return torch.cat([head[order] for head in rows.split(8)])


def test_every_block_has_its_own_number_of_heads(headless, tmp_path):
    path = written(headless, tmp_path / "small")
    config = json.loads((headless / "config.json").read_text())
    cut = config["disp_llm"]["widths"]
    kv = [kept * there for kept, there in zip(cut["heads"], cut["attention"], strict=True)]
    assert kv[0] in (1, 2, 3)
    assert 0 in kv
    assert 0 in cut["mlp"]
    assert len(set(kv)) == 3
    reader = gguf.GGUFReader(path)
    says = {name: field.contents() for name, field in reader.fields.items()}
    assert says["deci.attention.head_count_kv"] == kv
    assert says["deci.attention.head_count"] == [2 * kept for kept in kv]
    assert says["deci.attention.key_length"] == says["deci.attention.value_length"] == 8
    state = load_file(headless / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for i, kept in enumerate(kv):
        found = {name: tensors.pop(f"blk.{i}.{name}", None) for name in attention_names()}
        if not kept:
            assert all(values is None for values in found.values())
            continue
        own = {name: state[f"model.layers.{i}.{own}"] for name, own in attention_names().items()}
        assert own["attn_q.weight"].shape == (2 * 8 * kept, 32)
        for name, values in own.items():
            wanted = in_pairs(values) if name.startswith(("attn_q", "attn_k")) else values
            np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-6)
    for i, there in enumerate(cut["mlp"]):
        biases = [tensors[f"blk.{i}.{name}.bias"] for name in ("ffn_gate", "ffn_up", "ffn_down")]
        width = cut["mlp_mid"][i] if there else 32
        assert [len(bias) for bias in biases] == [width, width, 32]
        assert any(bias.any() for bias in biases) == bool(there)


def attention_names() -> dict[str, str]:
    """Tensors of an attention: llama.cpp's names, and those of the folder."""
    parts = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
    names = {
        f"{name}.{kind}": f"self_attn.{own}.{kind}"
        for name, own in parts.items()
        for kind in ("weight", "bias")
    }
    return names | {"attn_norm.weight": "input_layernorm.weight"}


def test_biases_that_flap_adds_are_refused(llama_folder, text_file, tmp_path):
    done = must_run(
        "prune", llama_folder, "--method", "flap", "--sites", "mlp_mid", "--keep", 0.7,
        "--text", text_file, "--output-dir", tmp_path / "run", *SMALL,
    )  # fmt: skip
    folder = tmp_path / "run" / "keep-0.7"
    for to in ("gguf", "plain"):
        done = convert(folder, to, tmp_path / to)
        assert done.returncode == 2
        assert "biases" in done.stderr


def test_what_the_format_cannot_hold_is_refused(runs, llama_folder, tmp_path):
    for folder, said in ((runs["everywhere"], "--for llama.cpp"), (llama_folder, "FOLDER")):
        done = convert(folder, "gguf", tmp_path / "small")
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "small").exists()


def test_another_architecture_is_refused_by_name(tmp_path):
    dense = tiny_prunable("gemma4_text")
    export_folder(dense, byte_tokenizer(), masks_of("random", dense.layout), tmp_path / "ours")
    done = convert(tmp_path / "ours", "gguf", tmp_path / "small")
    assert done.returncode == 2
    assert "FOLDER: gemma4_text models have no such layout in llama.cpp" in done.stderr


def test_plain_folder_is_the_native_architecture(runs, tmp_path):
    write_sums(runs["uniform"])
    done = convert(runs["uniform"], "plain", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    assert not folder_problems(tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(model) is transformers.LlamaForCausalLM
    assert model.config.intermediate_size == 24
    assert not list((tmp_path / "plain").glob("*.py"))
    card = (tmp_path / "plain" / "README.md").read_text()
    assert 'from_pretrained("plain")' in card
    assert "trust" not in card
    assert "import disp_llm" not in card
    wanted = transformers.AutoModelForCausalLM.from_pretrained(runs["uniform"])
    torch.testing.assert_close(model(PROMPT).logits, wanted(PROMPT).logits, rtol=0, atol=1e-6)
    refused = convert(runs["variable"], "plain", tmp_path / "no")
    assert refused.returncode == 2
    assert "--to: intermediate_size differs" in refused.stderr
    assert "--for anywhere" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("adds", [True, False])
def test_a_file_says_whether_bos_comes_first(adds, tmp_path):
    """llama.cpp would put one before texts of some kinds of tokenizers where nothing is said."""
    target = tiny_prunable("llama")
    masks = masks_of("keep-all", target.layout)
    export_folder(target, byte_tokenizer(bos=adds), masks, tmp_path / "folder")
    write_file(tmp_path / "folder", tmp_path / "model.gguf")
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.add_bos_token"]
    assert field.contents() is adds
