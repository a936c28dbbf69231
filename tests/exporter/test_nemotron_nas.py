"""Folders of blocks that differ, and runs that are made for an engine."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, byte_tokenizer, must_refuse, must_run, tiny_model
from in_memory import blocks_that_differ
from safetensors.torch import load_file
from transformers import AutoConfig

from disp_llm.commands.convert import convert
from disp_llm.config.errors import InputError


def width_of(ffn_mult: float, hidden: int) -> int:
    """`_ffn_mult_to_intermediate_size` of vLLM 0.32, SGLang 0.5.23 and mlx-lm 0.32, which keeps six
    digits of the multiple."""
    width = int(2 * round(ffn_mult, 6) * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def test_blocks_are_stated_as_engines_read_them(tmp_path):
    folder, new = blocks_that_differ(tmp_path / "ours"), tmp_path / "new"
    convert(folder, to="nemotron-nas", output_dir=new)
    stated = json.loads((new / "config.json").read_text())
    blocks = stated["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, True, False]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, False, True]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, None, 2]
    widths = [width_of(block["ffn"]["ffn_mult"], 128) for block in blocks[:2]]
    assert widths == [256, 512]
    weights = load_file(new / "model.safetensors")
    assert [len(weights[f"model.layers.{i}.mlp.up_proj.weight"]) for i in range(2)] == widths
    ours = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in weights.items())
    read = AutoConfig.from_pretrained(new, trust_remote_code=True)
    assert read.block_configs[1].attention.no_op
    assert read.block_configs[1].ffn.ffn_mult == blocks[1]["ffn"]["ffn_mult"]
    assert json.loads(read.to_json_string())["block_configs"] == blocks


@pytest.mark.parametrize("hidden", [576, 896, 2048, 4096, 5120, 8192])
def test_every_width_survives_its_multiple(hidden):
    from disp_llm.exporter.formats.nemotron_nas import multiple

    config = AutoConfig.for_model("llama", hidden_size=hidden)
    for width in range(256, 8 * hidden, 256):
        assert width_of(multiple(width, config), hidden) == width


def test_an_activation_that_engines_refuse_is_refused(tmp_path):
    folder = blocks_that_differ(tmp_path / "ours")
    said = folder / "config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"hidden_act": "gelu"}))
    with pytest.raises(InputError, match="has the activation gelu"):
        convert(folder, to="nemotron-nas", output_dir=tmp_path / "new")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama whose MLPs have room for steps of 256."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    tiny_model("llama", intermediate_size=1024).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("engine", "form"),
    [("llama.cpp", "gguf"), ("nemotron-nas", "nemotron-nas"), ("anywhere", "plain")],
)
def test_a_run_for_an_engine_has_its_format(engine, form, wide, text_file, tmp_path):
    run, flags = tmp_path / "run", ("--method", "fisher", "--keep", 0.6, "--for", engine)
    asked = ("prune", wide, "--text", text_file, "--output-dir", run, *SMALL, *flags, "--json")
    done = must_run(*asked)
    (found,) = json.loads(done.stdout)["models"]
    new = run / f"keep-0.6-{form}"
    assert found["converted"] == str(new)
    assert found["keep"] <= 0.6
    loads = {"gguf": "llama-cli -m", "nemotron-nas": "mlx_lm.generate --model", "plain": "from_pre"}
    assert loads[form] in (new / "README.md").read_text()
    sums = (new / "SHA256SUMS").read_bytes()
    shutil.rmtree(new)
    done = must_run(*asked, "--resume")
    assert (new / "SHA256SUMS").read_bytes() == sums


@pytest.mark.parametrize("engine", ["llama.cpp", "nemotron-nas"])
def test_a_model_that_an_engine_cannot_run_is_refused_first(engine, text_file, tmp_path):
    folder, run = tmp_path / "model", tmp_path / "run"
    tiny_model("qwen2", intermediate_size=1024).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    flags = ("--text", text_file, "--output-dir", run, "--for", engine)
    done = must_refuse("prune", folder, *flags, *SMALL)
    assert "--for: qwen2 models" in done.stderr
    assert not run.exists()


def test_a_recovered_model_is_written_for_an_engine(wide, text_file, tmp_path):
    text = ("--text", text_file)
    done = must_run("prune", wide, *text, "--output-dir", tmp_path / "run", *SMALL)
    pruned, better = tmp_path / "run" / "keep-0.5", tmp_path / "better"
    asked = ("recover", pruned, *text, "--tokens", 64, "--length", 16, "--windows", 1)
    done = must_run(*asked, "--output-dir", better, "--for", "llama.cpp", "--json")
    assert json.loads(done.stdout)["model"]["converted"] == str(better / "model-gguf")
    shutil.rmtree(better / "model-gguf")
    done = must_run(*asked, "--output-dir", better, "--for", "llama.cpp", "--resume")
    assert (better / "model-gguf" / "model.gguf").is_file()
    done = must_refuse(*asked, "--output-dir", tmp_path / "no", "--for", "nemotron-nas")
    assert "--for: " in done.stderr
    assert not (tmp_path / "no").exists()


def test_what_an_engine_cannot_run_is_refused(wide, text_file, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run", *SMALL)
    done = must_refuse("prune", wide, *flags, "--for", "llama.cpp", "--sites", "attn_in")
    assert "--sites: names more than --for llama.cpp can run" in done.stderr
    done = must_refuse("prune", wide, *flags, "--for", "llama.cpp", "--fit", "1MB")
    assert "--for" in done.stderr


def test_widths_between_the_steps_are_refused(llama_folder, text_file, tmp_path):
    run = tmp_path / "run"
    flags = ("--text", text_file, "--sites", "mlp_mid", "--output-dir", run, *SMALL)
    must_run("prune", llama_folder, *flags)
    with pytest.raises(InputError, match="no multiples of 256"):
        convert(run / "keep-0.5", to="nemotron-nas", output_dir=tmp_path / "new")
