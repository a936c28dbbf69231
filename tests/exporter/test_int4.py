"""Calibrated int4: weights make up for what those to their left lose, and are stored so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import byte_tokenizer, must_run

from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.errors import InputError
from disp_llm.exporter.formats import int4
from disp_llm.exporter.formats.int4 import best_scales, rounded_to
from disp_llm.methods.compensating import COLUMNS, DAMPING, damped
from disp_llm.runs.progress import silent


def correlated(channels: int, rows: int = 400) -> torch.Tensor:
    """`Σ x·xᵀ` of inputs that depend on one another."""
    noise = torch.Generator().manual_seed(channels)
    mixing = torch.randn(channels, channels, generator=noise) / channels**0.5
    inputs = torch.randn(rows, channels, generator=noise) @ (mixing + torch.eye(channels))
    return inputs.T @ inputs


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Each number rounded by itself."""
    groups = weight.unflatten(1, (-1, 32))
    scale = best_scales(groups, torch.float32)[..., None]
    return ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)


def test_columns_follow_exact_solves_one_by_one():
    """The oracle knows no inverse and no blocks: it solves for what is still to come each time."""
    channels = COLUMNS + 64
    weight = torch.randn(5, channels, generator=torch.Generator().manual_seed(1))
    moment = correlated(channels)
    order = moment.diagonal().argsort(descending=True)
    hessian = damped(moment, DAMPING)[order][:, order]
    groups, sizes = weight.unflatten(1, (-1, 32)), moment.diagonal().unflatten(0, (-1, 32))
    scales = best_scales(groups, torch.float32, sizes).repeat_interleave(32, 1)
    wanted = weight[:, order].double()
    for j, scale in enumerate(scales[:, order].double().T):
        new = (wanted[:, j] / scale).round().clamp(-8, 7) * scale
        lost, wanted[:, j] = wanted[:, j] - new, new
        if j + 1 < channels:
            rest = hessian[j + 1 :, j + 1 :]
            wanted[:, j + 1 :] += lost[:, None] * torch.linalg.solve(rest, hessian[j + 1 :, j])
    got, stored = rounded_to(weight, moment, torch.float32)
    different = (got[:, order].double() - wanted).abs() > 1e-3
    assert different.float().mean() < 0.01  # numbers that lie between two
    numbers = got / stored.repeat_interleave(32, 1)
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-4)
    assert (int(numbers.round().min()), int(numbers.round().max())) == (-8, 7)


def test_scales_are_best_for_the_numbers_that_large_inputs_meet():
    group = torch.linspace(0.03, 1, 32).roll(5)[None, None]
    sizes = torch.where(group[0] > 0.9, 0.001, 1.0)  # those that a small scale cuts off
    tried = torch.stack([best_scales(group, torch.float32, one) for one in (sizes, 1 / sizes)])

    def lost(scale: torch.Tensor, of: torch.Tensor) -> float:
        new = (group / scale).round().clamp(-8, 7) * scale
        return float(((new - group).square() * of).sum())

    assert tried[0] != tried[1]
    assert lost(tried[0], sizes) < lost(tried[1], sizes)
    assert lost(tried[1], 1 / sizes) < lost(tried[0], 1 / sizes)


def test_outputs_lose_less_than_by_rounding_to_the_nearest():
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(2))
    moment = correlated(192)

    def lost(made: torch.Tensor) -> float:
        difference = weight - made
        return float(((difference @ moment) * difference).sum())

    assert lost(rounded_to(weight, moment, torch.float32)[0]) < 0.6 * lost(nearest(weight))


@pytest.fixture
def folder(wide_folder, monkeypatch):
    pytest.importorskip("compressed_tensors", reason="quantising needs it, an extra")
    monkeypatch.setattr(int4, "SEQUENCES", 32)
    monkeypatch.setattr(int4, "LENGTH", 32)
    return wide_folder


def logits_of(folder, windows):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(windows).logits


def test_a_calibrated_folder_is_nearer_to_what_it_was_made_of(folder, tmp_path, text_file):
    said = []
    config = ConvertConfig(folder, "int4", tmp_path / "made", (text_file,))
    convert(config, progress=lambda *report: said.append(report))
    convert(ConvertConfig(folder, "int4", tmp_path / "nearest"), progress=silent)
    assert [report[:3] for report in said] == [("writing int4", n, 3) for n in (1, 2, 3)]
    must_run("verify", tmp_path / "made")
    ids = byte_tokenizer()(text_file.read_text()[:4096])["input_ids"]
    windows = torch.tensor(ids).unfold(0, 32, 32)
    before = logits_of(folder, windows)
    lost = [
        float((logits_of(tmp_path / name, windows) - before).square().mean())
        for name in ("made", "nearest")
    ]
    assert lost[0] < 0.8 * lost[1]
    for name in ("config.json", "model.safetensors"):
        sizes = [(tmp_path / made / name).stat().st_size for made in ("made", "nearest")]
        assert sizes[0] == sizes[1]
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"calibrated on 32 windows of 32 tokens of {text_file.name} (GPTQ)" in card
    assert "calibrated on" not in (tmp_path / "nearest" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"to": "int8"}, "text: calibrates int4"),
        ({"text": (Path("self"),)}, "text: cannot be the model's own text here"),
        ({"text": (Path("missing.txt"),)}, "text: .*missing.txt"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(changes, complaint, folder, tmp_path, text_file):
    config = replace(ConvertConfig(folder, "int4", tmp_path / "made", (text_file,)), **changes)
    with pytest.raises(InputError, match=complaint):
        convert(config, progress=silent)
    assert not (tmp_path / "made").exists()
