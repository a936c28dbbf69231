"""Commands on wrappers, from folder to folder: what they say of a picture, and what travels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL, byte_tokenizer, must_run, run_command
from mixture_runs import export_another_size, pruned
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoProcessor, PreTrainedTokenizerFast
from wrapping import BEGIN, END, PICTURE, picture, tiny_wrapper

FIXED = "--method fisher --rounds 0".split()
"""Flags of a run that changes no weight."""


def gemma3_processor(folder: Path) -> None:
    """A real processor, of pictures of 16×16 pixels for 4 tokens."""
    found = transformers.models.gemma3.image_processing_pil_gemma3
    tokens = {"boi_token": "<begin>", "image_token": "<picture>", "eoi_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=tokens,
    )
    ids = tokenizer.convert_tokens_to_ids(list(tokens.values()))
    assert ids == [BEGIN, PICTURE, END]
    size = {"height": 16, "width": 16}
    pixels = found.Gemma3ImageProcessorPil(size=size, image_seq_length=4)
    made = transformers.Gemma3Processor(pixels, tokenizer, image_seq_length=4)
    made.save_pretrained(folder)


def settings_alone(folder: Path) -> None:
    """A tokenizer, and files of a processor as they lie in many a folder."""
    byte_tokenizer().save_pretrained(folder)
    of_pictures = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(of_pictures))
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"fps": 2}))


@pytest.fixture(scope="module", params=["gemma3", "gemma4", "qwen3_5"])
def wrapped(request, tmp_path_factory, text_file) -> tuple[str, Path, Path]:
    """The type of a wrapper, its folder, and that of a finished run at two sizes."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_wrapper(request.param).save_pretrained(folder / "model")
    write = gemma3_processor if request.param == "gemma3" else settings_alone
    write(folder / "model")
    must_run(
        "prune", folder / "model", "--keep", 1.0, 0.6, "--text", text_file,
        "--output-dir", folder / "run", "--json", *SMALL, *FIXED,
    )  # fmt: skip
    return request.param, folder / "model", folder / "run"


def loaded(folder: Path):
    return AutoModelForMultimodalLM.from_pretrained(folder)


def beside(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that are not the language model's."""
    weights = load_file(folder / "model.safetensors")
    return {n: t for n, t in weights.items() if "language_model" not in n and "lm_head" not in n}


def test_at_keep_1_the_answer_is_the_same(wrapped):
    model_type, model, run = wrapped
    wanted, got = loaded(model), loaded(run / "keep-1")
    prompt = picture(model_type)
    assert type(got).__name__ == f"Disp{type(wanted).__name__}"
    assert torch.equal(got(**prompt).logits, wanted(**prompt).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(got.generate(**prompt, **options), wanted.generate(**prompt, **options))


def test_what_is_pruned_is_the_language_model(wrapped):
    model_type, model, run = wrapped
    result = json.loads((run / "result.json").read_text())
    size = result["models"][1]
    pruned, whole = loaded(run / "keep-0.6"), loaded(model)
    parts = size["other_parameters"]
    assert size["parameters"] == sum(p.numel() for p in pruned.parameters())
    assert sum(parts.values()) == sum(t.numel() for t in beside(run / "keep-0.6").values())
    assert 0.5 < size["keep"] <= 0.6
    assert size["keep_total"] > size["keep"]
    before, after = dict(whole.named_parameters()), beside(run / "keep-0.6")
    assert len(after) > 10
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    prompt = picture(model_type)
    assert not torch.equal(pruned(**prompt).logits, whole(**prompt).logits)
    card = (run / "keep-0.6" / "README.md").read_text()
    for name, number in parts.items():
        assert f"| {name} | {number:,} | {number:,} | 100 % |" in card
    assert "AutoModelForMultimodalLM.from_pretrained" in card
    assert "pipeline_tag: image-text-to-text" in card
    assert "vllm" not in card
    done = run_command("verify", run, "--json")
    assert json.loads(done.stdout)["ok"], done.stdout


def test_the_processor_travels(wrapped, tmp_path):
    model_type, model, run = wrapped
    done = must_run(
        "convert", run / "keep-0.6", "--to", "folder", "--output-dir", tmp_path / "saved"
    )
    assert "left out" not in done.stderr
    files = [path.name for path in model.glob("*processor_config.json")]
    assert files
    for name in files:
        for folder in (run / "keep-0.6", tmp_path / "saved"):
            assert (folder / name).read_bytes() == (model / name).read_bytes()
    if model_type == "gemma3":
        processor = AutoProcessor.from_pretrained(tmp_path / "saved")
        noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        shown = {
            "images": Image.fromarray(noise),
            "text": "It shows <begin>",
            "return_tensors": "pt",
        }
        prompt = processor(**shown)
        assert prompt["pixel_values"].shape == (1, 3, 16, 16)
        wanted = loaded(model)(**AutoProcessor.from_pretrained(model)(**shown)).logits
        assert torch.equal(loaded(run / "keep-1")(**prompt).logits, wanted)


def test_another_size_with_little_memory(wrapped):
    """From file to file, to the byte what is made in memory."""
    _, _, run = wrapped
    for flags in ((), ("--no-measure",)):
        shutil.rmtree(run / "keep-0.8", ignore_errors=True)
        must_run("export", run, "--keep", 0.8, *flags)
        files = {
            path.name: path.read_bytes()
            for path in (run / "keep-0.8").iterdir()
            if path.name not in ("README.md", "card.json", "SHA256SUMS")
        }
        if not flags:
            first = files
    assert first == files


def test_recover_trains_the_language_model_alone(wrapped, text_file, tmp_path):
    model_type, _, run = wrapped
    student = run / "keep-0.6"
    must_run(
        "recover", student, "--text", text_file, "--tokens", 128, "--length", 32, "--batch", 1,
        "--context", 32, "--windows", 4, "--learning-rate", 0.01,
        "--output-dir", tmp_path / "better", "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    better = tmp_path / "better" / "model"
    before, after = beside(student), beside(better)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = load_file(student / "model.safetensors"), load_file(better / "model.safetensors")
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert len(changed) > 10
    trained = ("language_model.layers", "language_model.norm.weight", "language_model.per_layer_")
    assert all(any(part in name for part in trained) for name in changed)
    prompt = picture(model_type)
    assert not torch.equal(loaded(better)(**prompt).logits, loaded(student)(**prompt).logits)
    names = {path.name for path in student.glob("*processor_config.json")}
    assert names == {path.name for path in better.glob("*processor_config.json")}


def test_learned_masks_with_scales_and_adapters(wrapped, text_file, tmp_path):
    """The default method, all kinds of entries: what is written is what was masked."""
    _, model, _ = wrapped
    done = must_run(
        "prune", model, "--keep", 0.6, "--text", text_file, "--output-dir", tmp_path / "run",
        "--sites", "attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "attention", "mlp",
        "--json", *SMALL, "--rounds", 1,
    )  # fmt: skip
    (made,) = json.loads(done.stdout)["models"]
    assert made["logit_errors"]["max_logit_error"] < 1e-5
    assert made["speed"]["prefill_ms"] > 0 < made["speed"]["decode_ms"]


def test_both_are_evaluated(wrapped, text_file):
    """The wrapper that transformers has, and the one that was made of it."""
    _, model, run = wrapped
    result = json.loads((run / "result.json").read_text())
    for folder, stated in ((model, result["original"]), (run / "keep-0.6", result["models"][1])):
        done = must_run(
            "eval", folder, "--text", text_file, "--context", 32, "--windows", 4,
            "--device", "cpu", "--dtype", "float32", "--json",
        )  # fmt: skip
        found = json.loads(done.stdout)
        for key in ("parameters", "block_parameters"):
            assert found[key] == stated[key]


def test_plain_wrappers_load_anywhere(tmp_path, text_file):
    tiny_wrapper("gemma3").save_pretrained(tmp_path / "model")
    gemma3_processor(tmp_path / "model")
    must_run(
        "prune", tmp_path / "model", "--keep", 0.75, "--text", text_file, "--sites", "mlp_mid",
        "--align", 24, "--output-dir", tmp_path / "run", *SMALL, *FIXED,
    )  # fmt: skip
    must_run(
        "convert", tmp_path / "run/keep-0.75", "--to", "plain", "--output-dir", tmp_path / "plain"
    )
    plain, prompt = loaded(tmp_path / "plain"), picture("gemma3")
    assert type(plain).__name__ == "Gemma3ForConditionalGeneration"
    assert plain.config.text_config.intermediate_size == 24
    assert torch.equal(plain(**prompt).logits, loaded(tmp_path / "run/keep-0.75")(**prompt).logits)
    assert (tmp_path / "plain" / "processor_config.json").is_file()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """A tiny Qwen 3.5 that sees and has experts."""
    folder = tmp_path_factory.mktemp("qwen3_5_moe")
    tiny_wrapper("qwen3_5_moe").save_pretrained(folder)
    settings_alone(folder)
    return folder


def test_experts_inside_a_wrapper(mixture, text_file, tmp_path):
    """The default method with whole experts, and another size from file to file."""
    run = tmp_path / "run"
    sites = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "experts")
    widths = pruned(mixture, text_file, run, "--keep", 0.5, "--rounds", 1, "--sites", *sites)
    assert min(widths["experts"]) < 6
    export_another_size(run)
    assert beside(run / "keep-0.7").keys() == beside(mixture).keys()


def test_active_parameters_of_a_wrapper_are_a_budget(mixture, text_file, tmp_path):
    flags = ("--budget", "active", "--fit", 0.6, *FIXED)
    assert min(pruned(mixture, text_file, tmp_path / "run", *flags)["mlp_mid"]) < 24


def test_reap_drops_experts_of_a_wrapper(mixture, text_file, tmp_path):
    flags = ("--method", "reap", "--keep", 0.75, "--rounds", 0)
    assert max(pruned(mixture, text_file, tmp_path / "run", *flags)["experts"]) < 6


def test_uniform_experts_give_a_plain_wrapper(mixture, text_file, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    widths = pruned(mixture, text_file, run, "--keep", 0.6, "--for", "anywhere", *FIXED)
    must_run("convert", run / "keep-0.6", "--to", "plain", "--output-dir", plain)
    model, report = AutoModelForMultimodalLM.from_pretrained(plain, output_loading_info=True)
    assert type(model).__name__ == "Qwen3_5MoeForConditionalGeneration"
    assert not any(report.values())
    text = model.config.text_config
    assert {text.num_experts} == set(widths["experts"])
    assert {text.moe_intermediate_size} == set(widths["mlp_mid"])
    prompt = picture("qwen3_5_moe")
    torch.testing.assert_close(model(**prompt).logits, loaded(run / "keep-0.6")(**prompt).logits)
