"""An exported folder is a Hugging Face folder: it reloads, generates, tunes and saves anywhere."""

import json
from pathlib import Path

import fresh
import peft
import pytest
import torch
import transformers
from configurations import VOCABULARY
from conftest import byte_tokenizer, masks_of, tiny_model, tiny_prunable
from in_memory import export_folder
from safetensors.torch import load_file

from disp_llm.exporter.cutting import compact_model
from disp_llm.exporter.folders import stream_folder, write_readers


def folder_of(model_type: str, path: Path, kind: str = "random") -> Path:
    target = tiny_prunable(model_type)
    export_folder(target, byte_tokenizer(), masks_of(kind, target.layout), path, "5GB")
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return folder_of("llama", tmp_path_factory.mktemp("folder") / "model")


@pytest.mark.parametrize("model_type", ["llama", "opt", "phi", "gemma2", "gpt2", "gpt_oss"])
def test_fresh_process_with_and_without_the_package(model_type, tmp_path):
    folder = folder_of(model_type, tmp_path / "model")
    target = tiny_prunable(model_type)
    compact = compact_model(target, masks_of("random", target.layout))
    wanted = compact(torch.tensor([fresh.PROMPT])).logits[0]
    tokens = compact.generate(
        torch.tensor([fresh.PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    for without in (False, True):
        found = fresh.load_and_generate(folder, without)
        torch.testing.assert_close(torch.tensor(found["logits"]), wanted, rtol=0, atol=1e-5)
        assert found["tokens"] == tokens[0].tolist()
        assert found["cached"]
        assert found["class"].startswith("Disp")
        assert found["base"].startswith("Disp")
        assert found["module"].startswith("transformers_modules" if without else "disp_llm.")
        assert found["hidden_differ"] == 0


def test_without_flag_and_package_it_is_refused_rather_than_loaded_wrong(llama, tmp_path):
    script = (
        "import sys; sys.modules['disp_llm'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)"
    )
    done = fresh.run(script, llama)
    assert done.returncode != 0
    assert "trust_remote_code" in done.stderr or "disp_llama" in done.stderr


@pytest.mark.parametrize("order", ["disp_llm, transformers", "transformers, disp_llm"])
def test_import_order_does_not_matter(llama, order):
    script = (
        f"import sys, {order}\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "assert type(AutoConfig.from_pretrained(sys.argv[1])).__name__ == 'DispLlamaConfig'\n"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    )
    done = fresh.run(script, llama)
    assert done.returncode == 0, done.stderr


def test_contents(llama):
    names = {path.name for path in llama.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {f"{name}_disp_llm.py" for name in ("configuration", "experts", "modeling")} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    config = json.loads((llama / "config.json").read_text())
    assert config["model_type"] == "disp_llama"
    assert config["hidden_size"] == 32  # the stream keeps its width
    assert config["auto_map"]["AutoModel"] == "modeling_disp_llm.DispLlamaModel"
    state = load_file(llama / "model.safetensors")
    widths = config["disp_llm"]["widths"]
    for i in range(3):
        kept = state[f"model.layers.{i}.self_attn.kept_in"]
        assert kept.dtype == torch.int64
        assert len(kept) == widths["attn_in"][i]
        assert (kept.diff() > 0).all()
        shape = state[f"model.layers.{i}.mlp.down_proj.weight"].shape
        assert shape == (widths["mlp_out"][i], widths["mlp_mid"][i])
    assert (llama / "model.safetensors").stat().st_mode & 0o044  # readable by a server's user


def test_generation_settings_that_do_not_go_together_are_taken_over(tmp_path):
    """As published models have them; transformers itself refuses to save such."""
    target = tiny_prunable("llama")
    target.model.generation_config.temperature = 0.6
    masks = masks_of("random", target.layout)
    export_folder(target, byte_tokenizer(), masks, tmp_path / "memory")
    read = target.model.state_dict().__getitem__
    stream_folder(target, masks, read, byte_tokenizer(), tmp_path / "streamed")
    for name in ("memory", "streamed"):
        found = transformers.GenerationConfig.from_pretrained(tmp_path / name)
        assert (found.temperature, found.do_sample, found.eos_token_id) == (0.6, None, 2)


def test_large_models_are_sharded(tmp_path):
    target = tiny_prunable("llama")
    masks = masks_of("random", target.layout)
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompt = torch.tensor([fresh.PROMPT])
    torch.testing.assert_close(
        again(prompt).logits, compact_model(target, masks)(prompt).logits, rtol=0, atol=1e-6
    )


def test_linears_stay_plain_under_their_names(llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    native = tiny_model("llama")
    plain = {name: type(m) for name, m in native.named_modules() if isinstance(m, torch.nn.Linear)}
    ours = {name: type(m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert ours == plain
    assert type(model.model.layers[0]) is type(native.model.layers[0])
    assert type(model.model.layers[0].self_attn) is type(native.model.layers[0].self_attn)


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ["q_proj", "o_proj", "down_proj"]),
        ("opt", "all-linear"),  # its MLP is of bare linear layers, which we wrap
        ("phi", ["q_proj", "v_proj", "dense", "fc1", "fc2"]),
        ("qwen2_moe", "all-linear"),  # its experts are packed and stay as they are
        ("gpt_oss", "all-linear"),
    ],
)
def test_lora_trains_merges_saves_and_reloads(model_type, targets, tmp_path):
    torch.manual_seed(0)
    folder = folder_of(model_type, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    settings = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, settings)
    tokens = torch.randint(4, VOCABULARY, (4, 20))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = tuned(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    tuned.eval()
    wanted = tuned(tokens).logits
    tuned.save_pretrained(tmp_path / "adapter")
    by_itself = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(by_itself(tokens).logits, wanted, rtol=0, atol=1e-6)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(tokens).logits, merged(tokens).logits, rtol=0, atol=1e-5)
    alone = fresh.load_and_generate(tmp_path / "merged", without=True)
    assert alone["module"].startswith("transformers_modules")


def test_every_weight_of_a_loaded_folder_trains(llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).train()
    tokens = torch.randint(4, VOCABULARY, (2, 12))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-6, atol=1e-6)


def test_trainer_tunes_the_whole_model(llama, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    tokens = torch.randint(4, VOCABULARY, (8, 20), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=20, learning_rate=1e-2, seed=0,
        per_device_train_batch_size=8, gradient_checkpointing=True, use_cpu=True,
        logging_steps=1, save_steps=20, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "trainer" / "checkpoint-20"
    )
    assert type(again) is type(model)
    torch.testing.assert_close(
        again(tokens).logits, model.eval()(tokens).logits, rtol=1e-5, atol=1e-5
    )


def test_compiled_equals_eager(llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    prompt = torch.tensor([fresh.PROMPT])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(prompt, use_cache=False).logits, model(prompt).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", [Exception, KeyError])
def test_a_disk_that_is_full_of_tokenizer_is_an_error_of_the_disk(kind, llama, monkeypatch):
    """The tokenizers library says so by the most general class there is, and that one alone."""

    def full(*place):
        raise kind("No space left on device (os error 28)")

    tokenizer = byte_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError if kind is Exception else kind, match="No space left"):
        write_readers(tokenizer, (), llama)
