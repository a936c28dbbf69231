"""gpt-oss, whose experts are published in MXFP4, from that folder to a pruned one."""

import json
from pathlib import Path

import fresh
import pytest
import torch
from conftest import SMALL, byte_tokenizer, must_run, tiny_model
from fresh import PROMPT
from mixture_runs import export_another_size
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load

HALVES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = torch.tensor([*HALVES, *(-value for value in HALVES)])
"""The numbers that four bits stand for."""
SITES = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "heads", "experts", "attention")


def in_four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A packed weight (E, I, O) as bytes of two numbers each, (E, O, I / 32, 16), exponents,
    (E, O, I / 32), and the numbers that these stand for."""
    groups = weight.mT.unflatten(-1, (-1, 32))
    exponents = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    index = (groups[..., None] / exponents[..., None].exp2() - VALUES).abs().argmin(-1)
    numbers = (VALUES[index] * exponents.exp2()).flatten(-2).mT
    halves = (index[..., ::2] + 16 * index[..., 1::2]).to(torch.uint8)
    return halves, (exponents.squeeze(-1) + 127).to(torch.uint8), numbers


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A tiny gpt-oss as OpenAI publishes it, and the weights of its experts."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    tiny_model("gpt_oss", hidden_size=64, intermediate_size=32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    tensors, experts = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj")]:
        parts = in_four_bits(tensors.pop(name))
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"], experts[name] = parts
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    stated = {"quant_method": "mxfp4", "modules_to_not_convert": whole}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    return folder, experts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_are_unpacked(published, dtype):
    folder, experts = published
    loaded = load(str(folder), MachineConfig(device="cpu", dtype=dtype), dense_only=True)
    assert len(experts) == 6
    for name, numbers in experts.items():
        assert torch.equal(loaded.model.get_parameter(name), numbers.to(loaded.dtype))
    assert not getattr(loaded.model.config, "quantization_config", None)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_file_without_the_scales_gets_one_line(published, tmp_path):
    for path in published[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as raised:
        load(str(tmp_path), MachineConfig(device="cpu", dtype="float32"))
    assert len(str(raised.value).splitlines()) == 1


def test_it_is_pruned_at_all_of_its_sites(published, text_file, tmp_path):
    run = tmp_path / "run"
    flags = ("--keep", 0.5, "--sites", *SITES, "--method", "fisher")
    where = ("--text", text_file, "--output-dir", run, "--json", *SMALL)
    done = must_run("prune", published[0], *where, *flags)
    (size,) = json.loads(done.stdout)["models"]
    assert 0.47 < size["keep"] <= 0.5
    assert size["logit_errors"]["max_logit_error"] < 1e-5
    must_run("verify", run)
    config = json.loads((run / "keep-0.5" / "config.json").read_text())
    assert "quantization_config" not in config
    assert min(config["disp_llm"]["widths"]["experts"]) < 6
    found = [fresh.load_and_generate(run / "keep-0.5", without) for without in (False, True)]
    assert found[0]["tokens"] == found[1]["tokens"]
    assert {one["class"] for one in found} == {"DispGptOssForCausalLM"}
    export_another_size(run)


def test_uniform_gives_a_model_of_the_original_class(published, text_file, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    flags = ("--keep", 0.6, "--for", "anywhere", "--method", "fisher")
    must_run("prune", published[0], "--text", text_file, "--output-dir", run, *SMALL, *flags)
    must_run("convert", run / "keep-0.6", "--to", "plain", "--output-dir", plain, "--json")
    model, report = AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert type(model).__name__ == "GptOssForCausalLM"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_local_experts * model.config.intermediate_size < 6 * 32
    tokens = torch.tensor([PROMPT])
    wanted = AutoModelForCausalLM.from_pretrained(run / "keep-0.6")(tokens).logits
    torch.testing.assert_close(model(tokens).logits, wanted)
