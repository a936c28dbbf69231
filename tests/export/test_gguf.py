"""Models of whose residual stream nothing was cut: GGUF files, and the plain architecture."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL, byte_tokenizer, run_command, tiny_model
from damage import BYTES
from safetensors.torch import load_file, save_file

from disp_llm.config.errors import InputError
from disp_llm.models.loading import load_model
from disp_llm.runs.sums import folder_problems, write_sums

PROMPT = torch.tensor([[5, 60, 7, 33, 100, 12]])


def write_original(folder: Path, path: Path, **about: str) -> None:
    """The tiny Llama as llama.cpp's converter writes it: names, and rows of q and k by rotation.

    Args:
        about: more keys, with two underscores for a dot.
    """
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
    for key, value in about.items():
        writer.add_string(key.replace("__", "."), value)
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
        "everywhere": ["--keep", "0.7"],
    }
    for name, flags in kinds.items():
        done = run_command(
            "prune", llama_folder, "--text", text_file, "--output-dir", root / name, *SMALL, *flags
        )
        assert done.returncode == 0, done.stderr
    write_original(llama_folder, root / "original.gguf")
    sizes = {name: flags[-1] for name, flags in kinds.items()}
    folders = {name: root / name / f"keep-{size}" for name, size in sizes.items()}
    return folders | {"original": root / "original.gguf"}


def widths_of(folder: Path) -> list[int]:
    return json.loads((folder / "config.json").read_text())["disp_llm"]["widths"]["mlp_mid"]


def write(folder: Path, runs: dict, to: Path, *flags: str):
    return run_command("gguf", folder, "--original", runs["original"], "--to", to, *flags)


def test_uniform_widths_are_plain_llama_for_every_reader(runs, tmp_path):
    path = tmp_path / "small.gguf"
    done = write(runs["uniform"], runs, path, "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    assert set(widths_of(runs["uniform"])) == {24}
    read = read_back(path)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(runs["uniform"])
    torch.testing.assert_close(read(PROMPT).logits, wanted(PROMPT).logits, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_variable_widths_are_deci(runs, tmp_path, dtype):
    path = tmp_path / "small.gguf"
    done = write(runs["variable"], runs, path, "--dtype", dtype, "--json")
    assert done.returncode == 0, done.stderr
    widths = widths_of(runs["variable"])
    assert len(set(widths)) > 1
    assert json.loads(done.stdout)["intermediate_widths"] == widths
    reader, original = gguf.GGUFReader(path), gguf.GGUFReader(runs["original"])
    assert reader.fields["general.architecture"].contents() == "deci"
    assert reader.fields["deci.feed_forward_length"].contents() == widths
    assert reader.fields["deci.attention.head_count"].contents() == [4] * 3
    assert reader.fields["deci.attention.head_count_kv"].contents() == [2] * 3
    same = "tokenizer.ggml.tokens"
    assert reader.fields[same].contents() == original.fields[same].contents()
    state = load_file(runs["variable"] / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {tensor.name for tensor in original.tensors}
    for i, width in enumerate(widths):
        down = tensors[f"blk.{i}.ffn_down.weight"]
        found = gguf.dequantize(down.data, down.tensor_type)
        assert found.shape == (32, width)
        wanted = state[f"model.layers.{i}.mlp.down_proj.weight"].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0 if dtype == "f32" else 1e-3, atol=1e-6)


def test_trained_attention_and_norms_come_along(runs, text_file, tmp_path):
    """A folder that `recover` has trained differs from the original outside the MLPs, too."""
    done = run_command(
        "recover", runs["uniform"], "--text", text_file, "--output-dir", tmp_path / "run",
        "--tokens", 512, "--length", 32, "--learning-rate", 0.01, "--distill", 0,
        "--context", 32, "--windows", 2, "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, path = tmp_path / "run" / "model", tmp_path / "gguf" / "small.gguf"
    done = write(folder, runs, path, "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = transformers.AutoModelForCausalLM.from_pretrained(runs["uniform"])
    read = read_back(path)
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(wanted.state_dict()[q_proj], before.state_dict()[q_proj])
    torch.testing.assert_close(read.state_dict()[q_proj], wanted.state_dict()[q_proj])
    torch.testing.assert_close(read(PROMPT).logits, wanted(PROMPT).logits, rtol=1e-4, atol=1e-4)


def test_biases_of_the_original_come_from_the_folder(text_file, tmp_path):
    original, run = tmp_path / "biased", tmp_path / "run"
    tiny_model("llama", mlp_bias=True, attention_bias=True).save_pretrained(original)
    byte_tokenizer().save_pretrained(original)
    done = run_command(
        "prune", original, "--sites", "mlp_mid", "--keep", 0.7, "--text", text_file,
        "--output-dir", run, *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    write_original(original, tmp_path / "original.gguf")
    path = tmp_path / "small.gguf"
    done = write(run / "keep-0.7", {"original": tmp_path / "original.gguf"}, path, "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    state = load_file(run / "keep-0.7" / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for i, width in enumerate(widths_of(run / "keep-0.7")):
        up = state[f"model.layers.{i}.mlp.up_proj.bias"].numpy()
        assert up.shape == (width,)
        np.testing.assert_array_equal(tensors[f"blk.{i}.ffn_up.bias"], up)
        q = state[f"model.layers.{i}.self_attn.q_proj.bias"].view(4, 2, -1)
        np.testing.assert_array_equal(tensors[f"blk.{i}.attn_q.bias"], q.transpose(1, 2).flatten())


@pytest.fixture(scope="module")
def headless(text_file, tmp_path_factory) -> dict[str, Path]:
    """A folder of which every block has lost another number of heads, of a model whose heads are
    wider than its stream makes them, with biases; and its original."""
    root = tmp_path_factory.mktemp("heads")
    more = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    model = tiny_model("llama", **more, attention_bias=True, mlp_bias=True)
    model.save_pretrained(root / "original")
    byte_tokenizer().save_pretrained(root / "original")
    done = run_command(
        "prune", root / "original", "--sites", "mlp_mid", "heads", "attention", "mlp",
        "--keep", 0.5, "--method", "random", "--align", 1, "--text", text_file,
        "--output-dir", root / "run", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    write_original(root / "original", root / "original.gguf")
    return {"original": root / "original.gguf", "folder": root / "run" / "keep-0.5"}


def in_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Rows of heads of 8 as llama.cpp rotates them: every one beside its partner."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    return torch.cat([head[order] for head in rows.split(8)])


def test_every_block_has_its_own_number_of_heads(headless, tmp_path):
    path = tmp_path / "small.gguf"
    done = write(headless["folder"], headless, path, "--dtype", "f32", "--json")
    assert done.returncode == 0, done.stderr
    config = json.loads((headless["folder"] / "config.json").read_text())
    cut = config["disp_llm"]["widths"]
    kv = [kept * there for kept, there in zip(cut["heads"], cut["attention"], strict=True)]
    assert kv[0] in (1, 2, 3)
    assert 0 in kv
    assert 0 in cut["mlp"]
    assert len(set(kv)) == 3
    assert json.loads(done.stdout)["kv_heads"] == kv
    reader = gguf.GGUFReader(path)
    says = {name: field.contents() for name, field in reader.fields.items()}
    assert says["deci.attention.head_count_kv"] == kv
    assert says["deci.attention.head_count"] == [2 * kept for kept in kv]
    assert says["deci.attention.key_length"] == says["deci.attention.value_length"] == 8
    state = load_file(headless["folder"] / "model.safetensors")
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
            np.testing.assert_array_equal(found[name], wanted)
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


def test_heads_of_the_first_block_do_not_say_how_wide_they_are(runs, tmp_path):
    """Where the original's file leaves it out, ours says it."""
    path = tmp_path / "small.gguf"
    assert "llama.attention.key_length" not in gguf.GGUFReader(runs["original"]).fields
    assert write(runs["variable"], runs, path).returncode == 0
    fields = gguf.GGUFReader(path).fields
    assert fields["deci.attention.key_length"].contents() == 8
    assert fields["deci.attention.value_length"].contents() == 8


def test_an_original_with_other_heads_is_refused(headless, tmp_path):
    path, other = tmp_path / "small.gguf", tmp_path / "other"
    more = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}
    tiny_model("llama", **more, attention_bias=True, mlp_bias=True).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    write_original(other, tmp_path / "other.gguf")
    done = write(headless["folder"], {"original": tmp_path / "other.gguf"}, path)
    assert done.returncode == 2
    assert "--original: model.layers.0.self_attn." in done.stderr
    assert "is not of the shape" in done.stderr
    whole = headless["original"].read_bytes()
    silent = tmp_path / "silent.gguf"
    silent.write_bytes(whole.replace(b"llama.attention.head_count", b"llama.attention.head_xount"))
    done = write(headless["folder"], {"original": silent}, path)
    assert done.returncode == 2
    assert "--original: llama.attention.head_count: expected int" in done.stderr
    assert not path.exists()


def test_a_tensor_of_no_block_is_refused_by_name(runs, tmp_path):
    path, original = tmp_path / "small.gguf", tmp_path / "original.gguf"
    original.write_bytes(runs["original"].read_bytes().replace(b"blk.2.ffn_up", b"blk.7.ffn_up"))
    done = write(runs["variable"], {"original": original}, path)
    assert done.returncode == 2
    assert "model.layers.2.mlp.up_proj.weight of the folder" in done.stderr
    assert not path.exists()


def test_a_file_says_nothing_of_where_it_was_made(runs, llama_folder, tmp_path):
    """llama.cpp's own quantiser writes down from which files of whom it has quantised."""
    kept = {"general__name": "Tiny", "general__url": "https://example.org/a/b"}
    left_out = {
        "quantize__imatrix__file": "/home/SECRET/imatrix.dat",
        "general__source": "/home/SECRET/llama",
    }
    original, path = tmp_path / "original.gguf", tmp_path / "small.gguf"
    write_original(llama_folder, original, **kept, **left_out)
    done = write(runs["variable"], {"original": original}, path)
    assert done.returncode == 0, done.stderr
    assert b"SECRET" not in path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()
    fields = gguf.GGUFReader(path).fields
    for key, value in kept.items():
        assert fields[key.replace("__", ".")].contents() == value


def test_a_folder_is_not_replaced_by_a_file(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = write(runs["uniform"], runs, tmp_path / "mine")
    assert done.returncode == 2
    assert "is a folder" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_biases_that_flap_adds_are_refused(llama_folder, text_file, runs, tmp_path):
    done = run_command(
        "prune", llama_folder, "--method", "flap", "--sites", "mlp_mid", "--keep", 0.7,
        "--text", text_file, "--output-dir", tmp_path / "run", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "keep-0.7"
    for done in (
        write(folder, runs, tmp_path / "small.gguf"),
        run_command("save", folder, "--to", tmp_path / "plain", "--plain"),
    ):
        assert done.returncode == 2
        assert "biases" in done.stderr


def test_what_the_format_cannot_hold_is_refused(runs, llama_folder, tmp_path):
    path = tmp_path / "small.gguf"
    for folder, said in ((runs["everywhere"], "--sites mlp_mid heads"), (llama_folder, "FOLDER")):
        done = write(folder, runs, path)
        assert done.returncode == 2
        assert said in done.stderr
    done = write(runs["variable"], runs | {"original": runs["variable"] / "config.json"}, path)
    assert done.returncode == 2
    assert "--original" in done.stderr
    assert not path.exists()


def test_plain_folder_is_the_native_architecture(runs, tmp_path):
    write_sums(runs["uniform"])
    done = run_command("save", runs["uniform"], "--to", tmp_path / "plain", "--plain")
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
    refused = run_command("save", runs["variable"], "--to", tmp_path / "no", "--plain")
    assert refused.returncode == 2
    assert "--plain" in refused.stderr
    assert "--uniform" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("how", [*BYTES, "cut within the keys", "a key that is no text"])
def test_a_damaged_original_is_one_line(runs, tmp_path, how):
    whole = runs["original"].read_bytes()
    others = {
        "cut within the keys": whole[:400],
        "a key that is no text": whole.replace(b"llama.context_length", b"llama.\xa9ontext_length"),
    }
    path = tmp_path / "original.gguf"
    path.write_bytes(others[how] if how in others else BYTES[how](whole))
    done = run_command("gguf", runs["uniform"], "--original", path, "--to", tmp_path / "small.gguf")
    assert done.returncode == 2, done.stderr
    assert f"--original: cannot read {path}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "small.gguf").exists()
