"""Wrappers: their language model is pruned, and what they say of a picture is exact."""

import json
from dataclasses import replace

import fresh
import pytest
import torch
from configurations import cases, tiny_config
from conftest import byte_tokenizer, masks_of, must_run, run_command, without_branches
from in_memory import export_folder
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM
from wrapping import TINY, picture, prunable_wrapper, tiny_wrapper, tiny_wrapper_config

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.budget import Budget
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import (
    FAMILIES,
    ROW_OF,
    WRAPPERS,
    family_of,
    register_architecture,
    row_of,
)
from disp_llm.models.family import HEAD, Wrapper
from disp_llm.models.loading import load
from disp_llm.training.losses import token_losses

ALL = sorted(WRAPPERS)
CASES = cases(ALL)
OPTIONS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def words() -> torch.Tensor:
    """Two prompts without a picture."""
    return torch.randint(4, 256, (2, 19), generator=torch.Generator().manual_seed(0))


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_every_wrapper_is_tried():
    assert set(TINY) == set(WRAPPERS)
    assert not set(WRAPPERS) & set(FAMILIES)
    assert set(ROW_OF.values()) <= set(FAMILIES)


@pytest.mark.parametrize("model_type", CASES)
def test_a_picture_is_seen(model_type):
    """Or a sound is heard. Else nothing below would show what becomes of one."""
    model, prompt = tiny_wrapper(model_type), picture(model_type)
    seen = model(**prompt).logits
    shown = next(iter(TINY[model_type].shown))
    other = model(**prompt | {shown: -prompt[shown]}).logits
    assert (seen - other)[:, -1].abs().max() > 1e-3 * seen.abs().max()


@pytest.mark.parametrize("content", ["{", "[]", "\ufeff{}"])
def test_a_damaged_file_of_the_processor_is_refused_where_the_model_is_loaded(content, tmp_path):
    """Only what is exported holds it, and that is written last."""
    tiny_wrapper("gemma3").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError) as error:
        load(str(tmp_path), PlaceConfig("cpu"))
    assert error.value.field == str(tmp_path / "preprocessor_config.json")


@pytest.mark.parametrize("kind", ["random", "keep-all", "keep-one"])
@pytest.mark.parametrize("model_type", CASES)
def test_exported_equals_masked(model_type, kind):
    """On text, and on a prompt with a picture."""
    target = prunable_wrapper(model_type)
    model, layout, prompts = (
        target.model,
        target.layout,
        ({"input_ids": words()}, picture(model_type)),
    )
    masks = masks_of(kind, layout)
    dense = [model(**prompt).logits for prompt in prompts]
    with masked(target) as masking:
        masking.set(masks.kept.float())
        wanted = [model(**prompt).logits for prompt in prompts]
    compact = compact_model(target, masks)
    got = [compact(**prompt).logits for prompt in prompts]
    for one, of_masked, of_dense in zip(got, wanted, dense, strict=True):
        assert_near(one, of_masked)
        if kind == "keep-all":
            assert torch.equal(one, of_dense)
        else:
            assert (of_masked - of_dense).abs().max() > 0.01 * of_dense.abs().max()
    if kind == "keep-all":
        assert set(compact.state_dict()) == set(model.state_dict())
    counts, budget = layout.counts(masks.kept.long()), Budget(layout)
    small = PrunableModel(compact, target.family)
    assert small.parameters == target.parameters - budget.removed_parameters(counts)
    assert small.block_parameters == int(budget.block_parameters(counts))
    assert small.other_parameters == target.other_parameters


@pytest.mark.parametrize("model_type", CASES)
def test_parts_are_counted_and_named(model_type):
    target = prunable_wrapper(model_type)
    tied = target.model.get_input_embeddings().weight is target.head_weight
    head = 0 if tied else target.head_weight.numel()
    inner = sum(p.numel() for p in target.language_model.parameters())
    others = target.other_parameters
    assert others
    assert all(number > 0 for number in others.values())
    assert target.parameters == inner + head + sum(others.values())
    assert target.family.tower not in others


@pytest.mark.parametrize("model_type", CASES)
def test_loss_equals_that_of_transformers(model_type):
    """A wrapper has a head of its own, which may scale its logits in another way."""
    target = prunable_wrapper(model_type)
    ours = token_losses(target, words()).mean()
    assert ours == pytest.approx(float(target.model(words(), labels=words()).loss), rel=1e-5)


def test_a_wrong_column_about_the_head_shows_in_the_loss():
    """Each that a wrapper has, without it, and each that its language model alone has, with it."""
    tried = set()
    for model_type in ALL:
        target = prunable_wrapper(model_type)
        alone = row_of(target.model.config.get_text_config().model_type)
        loss = float(target.model(words(), labels=words()).loss)
        for column in HEAD if alone else ():
            of_both = getattr(target.family, column), getattr(alone, column)
            if of_both == ("", ""):
                continue
            turned = {column: "" if of_both[0] else of_both[1]}
            wrong = replace(target, family=replace(target.family, **turned))
            got = float(token_losses(wrong, words()).mean())
            assert got != pytest.approx(loss, rel=1e-4), (model_type, column)
            tried.add((model_type, bool(of_both[0])))
    holds = {name for name, there in tried if there}
    assert holds == {name for name in ALL if WRAPPERS[name].head}
    assert {name for name, there in tried if not there} >= {
        "aya_vision",
        "cohere2_vision",
        "gemma3",
    }


@pytest.mark.parametrize("model_type", CASES)
def test_every_mask_entry_has_a_gradient(model_type):
    target = prunable_wrapper(model_type, branches=True)
    layout = target.layout
    mask = torch.ones(layout.entries, requires_grad=True)
    with masked(target) as masking:
        masking.set(mask)
        token_losses(target, words()).mean().backward()
    for name, part in zip(layout.names, layout.split(mask.grad), strict=True):
        assert (part != 0).float().mean() > (0.2 if name.endswith("mlp_mid") else 0.9), name


@pytest.mark.parametrize("model_type", CASES)
def test_everything_that_can_go(model_type, tmp_path):
    """Heads, whole branches and experts, and scales in the weights; with a picture, with and
    without a cache, and out of a folder."""
    target = prunable_wrapper(model_type, heads=True, branches=True, experts=True)
    model, layout, prompt = target.model, target.layout, picture(model_type)
    scales = torch.rand(layout.entries, generator=torch.Generator().manual_seed(1)) + 0.5
    masks = without_branches(target, scales)
    with masked(target) as masking:
        masking.set(masks.kept * scales)
        wanted = model(**prompt).logits
    with fold_into_weights(target, masks):
        compact = compact_model(target, masks)
        export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    assert_near(compact(**prompt).logits, wanted)
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model")
    assert_near(again(**prompt).logits, compact(**prompt).logits)
    cached = compact.generate(**prompt, use_cache=True, **OPTIONS)
    assert torch.equal(cached, compact.generate(**prompt, use_cache=False, **OPTIONS))
    assert torch.equal(cached, again.generate(**prompt, **OPTIONS))


SCRIPT = """
import json, sys
if {without}:
    sys.modules["disp_llm"] = None  # as if it were not installed
else:
    import disp_llm
import torch, transformers
arguments = {{"trust_remote_code": True}} if {without} else {{}}
prompt, found = torch.load(sys.argv[2]), {{}}
for name in {classes}:
    model = getattr(transformers, name).from_pretrained(sys.argv[1], **arguments)
    found[name] = type(model).__name__, type(model).__module__.partition(".")[0]
    found["logits"] = model(**prompt).logits[0].tolist()
base = model.base_model
if {alone}:
    base = transformers.AutoModel.from_pretrained(sys.argv[1], **arguments)
    assert torch.equal(base(**prompt)[0], model.base_model(**prompt)[0])
options = {{"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}}
found["tokens"] = model.generate(**prompt, **options)[0].tolist()
import peft
parts = "|".join(name for name, _ in base.named_children() if name != {tower!r})
settings = peft.LoraConfig(
    r=2, target_modules="all-linear", exclude_modules=rf".*\\.({{parts}})(\\..*)?",
    init_lora_weights=False,
)
tuned = peft.get_peft_model(model, settings)
adapters = [name for name, _ in tuned.named_parameters() if "lora_" in name]
found["adapted"] = sorted({{name.split(".")[3] for name in adapters}})
with_adapters = tuned(**prompt).logits
tuned(**prompt, labels=prompt["input_ids"]).loss.backward()
merged = tuned.merge_and_unload()
found["merged"] = float((merged(**prompt).logits - with_adapters).abs().max())
found["adapters"] = float((torch.tensor(found["logits"]) - with_adapters[0]).abs().max())
merged.save_pretrained(sys.argv[3])
again = transformers.AutoModelForMultimodalLM.from_pretrained(sys.argv[3], **arguments)
torch.testing.assert_close(again(**prompt).logits, merged(**prompt).logits, rtol=0, atol=1e-5)
print(json.dumps(found))
"""


WITHOUT_BASE = ("lighton_ocr",)
"""Those whose own class without a head does not find its weights in a folder of the whole."""

OFTEN = ("gemma3", "idefics3", "qwen3_5", "qwen3_5_moe", "voxtral")
"""One that sees, one with another path, one with a hybrid, one with experts, one that hears: two
processes take a second each, and those of the others are proofs."""


@pytest.mark.parametrize("without", [True, False])
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.proof) for n in ALL],
)
def test_a_fresh_process_sees_tunes_and_saves(model_type, without, tmp_path):
    target, prompt = prunable_wrapper(model_type), picture(model_type)
    masks = masks_of("random", target.layout)
    with masked(target) as masking:
        masking.set(masks.kept.float())
        wanted = target.model(**prompt).logits[0]
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    torch.save(prompt, tmp_path / "prompt.pt")
    classes = [f"AutoModelFor{what}" for what in ("MultimodalLM", "ImageTextToText", "CausalLM")]
    if TINY[model_type].sense == "audio":
        classes.remove("AutoModelForImageTextToText")
    alone = model_type not in WITHOUT_BASE
    script = SCRIPT.format(without=without, tower=target.family.tower, classes=classes, alone=alone)
    done = fresh.run(script, tmp_path / "model", tmp_path / "prompt.pt", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert_near(torch.tensor(found["logits"]), wanted)
    assert found["tokens"] == compact_model(target, masks).generate(**prompt, **OPTIONS)[0].tolist()
    name = f"Disp{type(target.model).__name__}"
    package = "transformers_modules" if without else "disp_llm"
    for loaded in classes:
        assert found[loaded] == [name, package]
    assert found["adapted"] == [target.family.tower]
    assert found["adapters"] > 0.01
    assert found["merged"] < 1e-3 * found["adapters"]  # sums in another order


@pytest.mark.parametrize("model_type", WITHOUT_BASE)
def test_a_base_model_that_finds_no_weights_is_not_one_of_ours(model_type, tmp_path):
    """transformers' own class does not find them in transformers' own folder."""
    tiny_wrapper(model_type).save_pretrained(tmp_path)
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]


def test_what_a_wrapper_asks_of_its_language_model(tmp_path):
    """Its row, and the variants that this refuses."""
    config = tiny_wrapper_config("internvl", model_type="opt", do_layer_norm_before=False)
    with pytest.raises(InputError, match="opt with do_layer_norm_before=False"):
        family_of(config)
    with pytest.raises(InputError, match="'mamba' is not supported"):
        family_of(tiny_wrapper_config("internvl", model_type="mamba"))
    assert family_of(tiny_wrapper_config("internvl")).tower == "language_model"
    assert not family_of(tiny_config("qwen3")).tower
    with pytest.raises(InputError, match="'qwen3_vl_text' is not supported"):
        family_of(tiny_wrapper_config("qwen3_vl").get_text_config())


@pytest.fixture
def without_internvl(monkeypatch):
    """As if this wrapper were not known; what a test registers is gone after it."""
    monkeypatch.delitem(WRAPPERS, "internvl")


def test_a_program_registers_a_wrapper(without_internvl, tmp_path):
    config = tiny_wrapper_config("internvl")
    with pytest.raises(InputError, match="'internvl' is not supported"):
        family_of(config)
    register_architecture("internvl", Wrapper("language_model"))
    target, prompt = prunable_wrapper("internvl"), picture("internvl")
    masks = masks_of("random", target.layout)
    wanted = compact_model(target, masks)(**prompt).logits
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    torch.save(prompt, tmp_path / "prompt.pt")
    script = (
        "import disp_llm, sys, torch\n"
        "from transformers import AutoModelForMultimodalLM\n"
        "from disp_llm.models.architectures import WRAPPERS, register_architecture\n"
        "from disp_llm.models.family import Wrapper\n"
        "register_architecture('internvl', Wrapper('language_model'))\n"
        "model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1])\n"
        "assert type(model).__module__.startswith('disp_llm.')\n"
        "torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])"
    )
    done = fresh.run(script, tmp_path / "model", tmp_path / "prompt.pt", tmp_path / "logits.pt")
    assert done.returncode == 0, done.stderr
    assert_near(torch.load(tmp_path / "logits.pt"), wanted)


def test_a_language_model_is_taken_out_of_a_wrapper(tmp_path):
    """As docs/commands.md says, for wrappers that are not known."""
    whole = tiny_wrapper("llava")
    text = AutoModelForCausalLM.from_config(whole.config.get_text_config())
    text.base_model.load_state_dict(whole.base_model.language_model.state_dict())
    text.set_output_embeddings(whole.get_output_embeddings())
    text.save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert family_of(found.config) == FAMILIES["llama"]
    assert torch.equal(found(words()).logits, whole(words()).logits)


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_5"])
def test_doctor_counts_the_parts(model_type, tmp_path):
    target = prunable_wrapper(model_type)
    target.model.config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == model_type
    done = must_run("doctor", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert found["parameters"] == target.parameters
    assert found["block_parameters"] == target.block_parameters
    assert found["other_parameters"] == target.other_parameters
    done = run_command("doctor", tmp_path)
    name, number = next(iter(target.other_parameters.items()))
    assert f"parameters that stay: {name} {number:,}" in done.stdout
