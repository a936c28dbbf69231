"""A model that a program hands over: what is refused before it learns, how it is left, and that one
task at a time has it."""

import copy
import threading

import peft
import pytest
import torch
import transformers
from configurations import ARCHITECTURES, cases
from conftest import byte_tokenizer, tiny_model
from small import settings_of
from torch import nn
from wrapping import tiny_of

import disp_lab
import disp_llm
from disp_llm.models.architectures import WRAPPERS
from disp_llm.models.in_memory import frozen, require_as_configured, require_loaded


def silent(*progress) -> None:
    """Progress that nobody sees."""


def stop(*progress) -> None:
    """Progress that fails."""
    raise KeyError("from the callback")


def prune(model, text_file, **changes):
    call = settings_of("magnitude") | {"method": "magnitude", "text": text_file}
    call |= {"progress": silent, "keep": 0.5}
    return disp_llm.prune(model, byte_tokenizer(), **call | changes)


def evaluate(model, text_file, **changes):
    call = {"text": text_file, "context": 32, "windows": 2, "progress": silent}
    return disp_llm.eval(model, byte_tokenizer(), **call | changes)


@pytest.mark.parametrize("name", cases([*ARCHITECTURES, *WRAPPERS]))
def test_a_model_as_it_comes_is_as_configured(name):
    model = tiny_of(name)
    require_loaded(model)
    require_as_configured(model)


def one_layer_twice(model):
    model.model.layers[2] = model.model.layers[0]


def one_mlp_twice(model):
    model.model.layers[2].mlp = model.model.layers[0].mlp


def one_weight_twice(model):
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


def added_bias(model):
    model.model.layers[1].mlp.up_proj.bias = nn.Parameter(torch.zeros(48))


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def untied(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())


def cut(model):
    model.model.layers = model.model.layers[:2]


def longer(model):
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))


def narrower(model):
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = (nn.Linear(32, 40, bias=False) for _ in "12")
    mlp.down_proj = nn.Linear(40, 32, bias=False)


def another_class(model):
    model.model.layers[1].mlp.act_fn = nn.Sequential(nn.SiLU())


def adapters(model):
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


BY_HAND = {
    one_layer_twice: "model.layers.2",
    one_mlp_twice: "model.layers.2.mlp",
    one_weight_twice: "model.layers.2.mlp.up_proj.weight",
    added_bias: "model.layers.1.mlp.up_proj.bias",
    tied: "lm_head.weight",
    untied: "lm_head.weight",
    cut: "model.layers.2",
    longer: "model.layers.3",
    narrower: "model.layers.1.mlp.gate_proj.weight",
    another_class: "model.layers.1.mlp.act_fn",
    adapters: "model.layers.0.self_attn.q_proj",
}


@pytest.mark.parametrize("change", BY_HAND)
def test_a_model_changed_by_hand_does_not_begin(change, text_file, tmp_path):
    model = tiny_model("llama", tie_word_embeddings=change is untied)
    change(model)
    began = []

    def progress(*done) -> None:
        began.append(done)

    for task in (disp_llm.prune, disp_llm.recover):
        with pytest.raises(disp_llm.InputError) as raised:
            task(
                model, byte_tokenizer(), text=text_file, progress=progress,
                output_dir=tmp_path / "run",
            )  # fmt: skip
        expected = f"model: is not what its config makes at {BY_HAND[change]}; say so"
        assert str(raised.value).startswith(expected)
        assert "\n" not in str(raised.value)
    assert not began
    assert not (tmp_path / "run").exists()
    assert evaluate(model, text_file)["perplexity"] > 1  # which needs no more than that it runs


def test_what_has_no_head_or_no_weights_is_refused_by_all(text_file):
    model = tiny_model("llama")
    classes = transformers.LlamaForSequenceClassification(model.config)
    for task in (prune, evaluate):
        for headless in (model.model, classes):
            with pytest.raises(disp_llm.InputError, match="without the head that predicts"):
                task(headless, text_file)
        with pytest.raises(disp_llm.InputError, match="has weights on the meta device"):
            task(tiny_model("llama").to("meta"), text_file)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_learns(without, text_file, tmp_path):
    model = tiny_model("llama")
    tasks = (
        lambda: prune(model, text_file),
        lambda: disp_llm.recover(model, byte_tokenizer(), text=text_file, progress=silent),
        lambda: disp_lab.compare("m", text=text_file, output_dir=tmp_path / "c", progress=silent),
    )
    for task in tasks:
        with without(), pytest.raises(disp_llm.InputError, match=r"^gradients: are off here, or"):
            task()
    with without():
        assert evaluate(model, text_file) == evaluate(tiny_model("llama"), text_file)
    assert evaluate(model, text_file)["perplexity"] > 1


def test_weights_that_were_made_without_gradients(text_file):
    with torch.inference_mode():
        model = transformers.LlamaForCausalLM(tiny_model("llama").config)
    with pytest.raises(disp_llm.InputError, match="or were where the weights were made"):
        prune(model, text_file)


def mixed(seed: int):
    """A model of which every module and parameter has a state of its own."""
    model, generator = tiny_model("llama"), torch.Generator().manual_seed(seed)
    for module in model.modules():
        module.training = bool(torch.rand(1, generator=generator) < 0.5)
    for parameter in model.parameters():
        parameter.requires_grad_(bool(torch.rand(1, generator=generator) < 0.5))
    return model


def state(model):
    modes = {name: module.training for name, module in model.named_modules()}
    return modes, {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("fails", [False, True])
def test_every_module_is_left_in_its_mode(seed, fails):
    model = mixed(seed)
    before = state(model)
    with pytest.raises(KeyError) if fails else frozen(model):
        assert fails or not any(module.training for module in model.modules())
        assert fails or not any(parameter.requires_grad for parameter in model.parameters())
        if fails:
            with frozen(model):
                raise KeyError
    assert state(model) == before


@pytest.mark.parametrize("progress", [silent, stop])
def test_every_task_leaves_it_as_it_was(progress, text_file):
    model, teacher = mixed(1), mixed(2)
    before = state(model), state(teacher)

    def recover(model, text_file, **changes):
        disp_llm.recover(
            model, byte_tokenizer(), text=text_file, teacher=teacher, tokens=64, length=32, batch=1,
            context=32, windows=2, dtype="float32", **changes,
        )  # fmt: skip

    for task in (prune, evaluate, recover):
        if progress is silent:
            task(model, text_file, progress=progress)
        else:
            with pytest.raises(KeyError, match="from the callback"):
                task(model, text_file, progress=progress)
        assert (state(model), state(teacher)) == before


def test_one_task_at_a_time_has_a_model(text_file):
    """A second one in another thread, or a task that is asked for inside of another."""
    model = tiny_model("llama")
    said, inside, may_end = [], threading.Event(), threading.Event()

    def wait(*progress) -> None:
        try:
            evaluate(model, text_file)
        except disp_llm.InputError as error:
            said.append(str(error))
        inside.set()
        may_end.wait(60)

    alone = evaluate(model, text_file)
    thread = threading.Thread(target=lambda: said.append(evaluate(model, text_file, progress=wait)))
    thread.start()
    assert inside.wait(60)
    for task in (prune, evaluate):
        with pytest.raises(disp_llm.InputError, match=r"^model: is at work in another task; wait"):
            task(model, text_file)
    assert evaluate(tiny_model("llama"), text_file) == alone
    may_end.set()
    thread.join()
    assert said.pop() == alone
    assert set(said) == {
        "model: is at work in another task; wait for that, or give each task a copy "
        "(`copy.deepcopy`)"
    }
    assert evaluate(model, text_file) == alone
    with pytest.raises(KeyError):
        evaluate(model, text_file, progress=stop)
    assert evaluate(model, text_file) == alone
