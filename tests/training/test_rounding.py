"""Training with the rounding by which weights are stored."""

import json

import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from conftest import (
    StopAfter,
    must_refuse,
    must_run,
    run_command,
    tiny_model,
    tiny_prunable,
)
from torch import nn

from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.models.rounding import on_grid, scales_of
from disp_llm.training.losses import token_losses
from disp_llm.training.rounding import rounded

SHAPES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
}  # fmt: skip


def target_of(**changes) -> PrunableModel:
    model = tiny_model("llama", **SHAPES | changes)
    return PrunableModel(model, family_of(model.config))


def test_scales_of_rows_are_those_of_the_format():
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    most = weight.abs().amax(-1, keepdim=True)
    theirs, _ = calculate_qparams(-most, most, QuantizationArgs(num_bits=8, strategy="channel"))
    assert torch.equal(scales_of(weight, "int8"), theirs)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rounded_weights_are_on_their_grid(bits):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    scales = scales_of(weight, bits)
    stored = on_grid(weight, scales, bits)
    numbers = stored.unflatten(-1, (scales.shape[-1], -1)) / scales.unsqueeze(-1)
    assert torch.allclose(numbers, numbers.round(), atol=1e-4)
    assert len(numbers.round().unique()) <= (16 if bits == "int4" else 256)
    step = scales.abs().repeat_interleave(64 // scales.shape[-1], 1)
    inside = numbers.flatten(-2).round().abs() < (7 if bits == "int4" else 127)
    assert ((stored - weight).abs() <= 0.5001 * step)[inside].all()
    zeros = torch.zeros(2, 64)
    assert torch.equal(on_grid(zeros, scales_of(zeros, bits), bits), zeros)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_gradient_is_that_at_the_rounded_weights(bits):
    tokens = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(0))
    target, other = target_of(), target_of()
    with torch.no_grad():
        for linear in other.linears():
            scales = scales_of(linear.weight, bits)
            linear.weight.copy_(on_grid(linear.weight, scales, bits))
    for one in (target, other):
        one.model.requires_grad_(True)
    token_losses(other, tokens).mean().backward()
    before = [linear.weight for linear in target.linears()]
    with rounded(target, bits, torch.float32) as before_step:
        before_step(0)
        loss = token_losses(target, tokens).mean()
        loss.backward()
    assert loss.item() == pytest.approx(token_losses(other, tokens).mean().item(), rel=1e-5)
    for linear, weight, rounded_ in zip(target.linears(), before, other.linears(), strict=True):
        assert linear.weight is weight  # the same parameter, and so the optimiser's
        torch.testing.assert_close(linear.weight.grad, rounded_.weight.grad, rtol=1e-3, atol=1e-5)


def test_scales_follow_the_weights():
    target = target_of()
    linear = next(target.linears())
    with rounded(target, "int4", torch.float32) as before_step:
        before_step(0)
        first = linear.weight.clone()
        linear.parametrizations.weight.original.data.mul_(4)
        assert not torch.allclose(linear.weight, 4 * first)  # cut off by the scales of before
        before_step(8)
        assert torch.equal(linear.weight, 4 * first)


def test_what_is_not_stored_so_is_refused():
    narrow = target_of(intermediate_size=120)
    with (
        pytest.raises(InputError, match="layers that are not stored so"),
        rounded(narrow, "int4", torch.float32),
    ):
        pass
    assert all(type(linear) is nn.Linear for linear in narrow.linears())
    with (
        pytest.raises(InputError, match="the model is a mixture of experts"),
        rounded(tiny_prunable("mixtral"), "int8", torch.float32),
    ):
        pass


def test_it_is_refused_before_anything_is_measured(small_run, text_file, tmp_path):
    folder = small_run[0] / "keep-0.5"
    flags = ("--text", text_file, "--bits", "int4", "--output-dir", tmp_path / "better")
    done = must_refuse("recover", folder, *flags, "--context", 32, "--length", 32)
    assert "--bits: has layers that are not stored so" in done.stderr
    assert "perplexity" not in done.stderr
    assert not (tmp_path / "better").exists()


def test_a_trained_model_is_stored_as_it_was_measured(tmp_path, llama_folder, text_file):
    model = tiny_model("llama", **SHAPES)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path / "model")
    text = ("--text", text_file, "--eval-text", text_file, "--context", 64, "--windows", 2)
    common = (*text, "--length", 32, "--dtype", "bfloat16")
    done = must_run(
        "prune", tmp_path / "model", "--keep", 0.7, *common, "--steps", 2, "--align", 32,
        "--rounds", 0, "--calibration-sequences", 2, "--calibration-length", 32,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    recover = (
        "recover", tmp_path / "run/keep-0.7", *common, "--tokens", 1024, "--bits", "int4", "--json",
    )  # fmt: skip
    done = must_run(*recover, "--output-dir", tmp_path / "better")
    with pytest.MonkeyPatch.context() as patch:  # between two searches of scales
        patch.setattr("disp_llm.cli.signals.StopSignals.__call__", StopAfter(4))
        assert run_command(*recover, "--output-dir", tmp_path / "again").returncode == 130
    must_run(*recover, "--output-dir", tmp_path / "again", "--resume")
    weights = "model/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (
        tmp_path / "better" / weights
    ).read_bytes()
    found = json.loads(done.stdout)["model"]
    folder, new = tmp_path / "better/model", tmp_path / "int4"
    assert "rounded to int4 while they trained" in (folder / "README.md").read_text()
    done = must_run("convert", folder, "--to", "int4", "--output-dir", new)
    measured = ("--text", text_file, "--context", 64, "--windows", 2, "--dtype", "bfloat16")
    done = must_run("eval", new, *measured, "--json")
    stored = json.loads(done.stdout)["perplexity"]
    assert stored == pytest.approx(found["measured"]["perplexity"], rel=2e-3)
    done = run_command("eval", folder, *measured, "--json")
    assert json.loads(done.stdout)["perplexity"] != pytest.approx(stored, rel=1e-6)
