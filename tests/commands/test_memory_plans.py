"""What fits is counted, said by `doctor`, and taken by `prune` without changing the masks."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, must_run, tiny_prunable
from safetensors.torch import load_file

from disp_llm.cli.parsing import parse
from disp_llm.commands import doctor as commands_doctor
from disp_llm.commands import planning as module
from disp_llm.commands.planning import ROOM, memory_plans
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import SITES
from disp_llm.config.parts import ScoreConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.randomness import generator_of
from disp_llm.masks.masking import masked
from disp_llm.training.adapters import Adapters, adapted
from disp_llm.training.hypernetwork import Hypernetwork
from disp_llm.training.memory import learning_memory


def examined(folder, *flags: object) -> dict:
    done = must_run("doctor", folder, "--json", *flags)
    return json.loads(done.stdout)


def test_doctor_lists_every_plan_and_names_the_first_that_fits(llama_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    on_the_processor = examined(llama_folder)
    assert on_the_processor["devices"] == 1
    assert {plan["processes"] for plan in on_the_processor["plans"]} == {1}
    monkeypatch.setattr(commands_doctor, "resolve_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(commands_doctor, "resolve_dtype", lambda dtype, device: torch.bfloat16)
    monkeypatch.setattr(commands_doctor, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(commands_doctor, "operations_per_second", lambda *_: 1e6)
    result = examined(llama_folder)
    assert result["devices"] == 4
    assert result["advice"] == "fits"
    sizes = {plan["name"]: plan["memory_bytes"] for plan in result["plans"]}
    assert list(sizes) == [
        "as it is",
        "--gradient-checkpointing yes",
        "--shard full",
        "--shard full --gradient-checkpointing yes",
    ]
    assert [plan["processes"] for plan in result["plans"]] == [1, 1, 4, 4]
    assert sizes["--gradient-checkpointing yes"] < sizes["as it is"]
    seconds = [plan["seconds"] for plan in result["plans"]]
    assert seconds[0] == seconds[2] < seconds[1] == seconds[3] < 1.34 * seconds[0]
    # Of a process on a CPU, what its libraries take counts too.
    assert on_the_processor["plans"][0]["memory_bytes"] > 100e6 > sizes["as it is"]
    between = sizes["--gradient-checkpointing yes"] / ROOM * 1.0001
    for free, said in (
        (between, "fits with --gradient-checkpointing yes"),
        (1, "does not fit"),
    ):
        monkeypatch.setattr(commands_doctor, "free_memory", lambda device, free=free: free)
        assert examined(llama_folder)["advice"].startswith(said)


def test_prune_takes_the_first_plan_that_fits(
    llama_folder, text_file, tmp_path, monkeypatch, caplog
):
    """Less memory than the plain one takes: blocks run again, and every number stays the same."""
    settings = parse(["prune", str(llama_folder), *SMALL])
    plans = memory_plans(tiny_prunable("llama"), settings, 1, 4)
    takes = plans[1].memory.total
    monkeypatch.setattr(module, "free_memory", lambda device: takes / ROOM * 1.0001)
    command = ("prune", llama_folder, "--text", text_file, *SMALL, "--compile", "no")
    done = must_run(*command, "--output-dir", tmp_path / "little")
    assert "GiB; with --gradient-checkpointing yes it is" in caplog.text
    monkeypatch.undo()
    done = must_run(*command, "--output-dir", tmp_path / "much")
    assert "GiB; with" not in done.stderr
    files = (tmp_path / run / "selection.safetensors" for run in ("little", "much"))
    little, much = map(load_file, files)
    assert all((little[name] == much[name]).all() for name in much)
    assert (tmp_path / "little" / "keep-0.5" / "model.safetensors").read_bytes() == (
        tmp_path / "much" / "keep-0.5" / "model.safetensors"
    ).read_bytes()


def test_weights_that_learn_are_held_whole(llama_folder, text_file, tmp_path, monkeypatch, caplog):
    """However little memory is free, by the plan that takes least."""
    monkeypatch.setattr(module, "free_memory", lambda device: 1)
    flags = ("--text", text_file, *SMALL, "--weight-rate", 0.001, "--output-dir", tmp_path)
    must_run("prune", llama_folder, *flags)
    assert "GiB; with --gradient-checkpointing yes it is" in caplog.text


def test_memory_falls_with_what_is_saved():
    target = tiny_prunable("llama")
    config = PruneConfig("tiny")

    def parts(recomputes: str = "no", processes: int = 1):
        training = replace(config.training, gradient_checkpointing=recomputes)
        return learning_memory(target, replace(config, training=training), processes, 4)

    plain = parts()
    blocks = sum(p.numel() for block in target.blocks for p in block.parameters())
    assert plain.weights == 4 * target.parameters
    assert parts(processes=4).weights == pytest.approx(4 * (target.parameters - blocks) + blocks)
    assert parts("yes").kept < plain.kept


def test_all_that_learns_is_counted():
    """Held against what is really trained, or kept."""
    target = tiny_prunable("llama")
    entries = target.layout.entries

    def counted(**learn):
        config = PruneConfig("tiny", learn=LearnConfig(scale_rate=0.0, adapter_rank=0, **learn))
        training = replace(config.training, gradient_checkpointing="no")
        return learning_memory(target, replace(config, training=training), 1, 4)

    network = Hypernetwork(torch.zeros(entries), target.layout.lengths, generator_of(0))
    numbers = sum(one.numel() for one in network.parameters())
    assert counted(parametrisation="hypernetwork").trained == 24 * numbers
    assert counted().trained == 24 * entries
    forward = {"estimator": "policy_gradient", "start": "random"}
    assert counted(**forward).kept == 0 < counted(estimator="policy_gradient").kept
    long = ScoreConfig(calibration_length=8192)
    config = PruneConfig("tiny", scores=long, learn=LearnConfig(adapter_rank=0))
    config = replace(config, training=replace(config.training, gradient_checkpointing="no"))
    kept = learning_memory(target, config, 1, 4).kept  # of calibration, eight times as long
    assert kept == 8 * learning_memory(target, replace(config, scores=ScoreConfig()), 1, 4).kept
    wanda = learning_memory(target, replace(config, method="wanda"), 1, 4)
    assert wanda.kept == wanda.trained == 0


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi", "opt"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("sites", "most"), [(SITES, 1.5), (("mlp_mid",), 2.1)])
def test_what_is_kept_for_the_backward_pass_is_counted(model_type, sites, most, rank):
    """As autograd keeps it, of tensors that are no weights."""
    target = replace(tiny_prunable(model_type), sites=sites)
    tokens = torch.arange(4, 68)[None]
    own = {p.untyped_storage().data_ptr() for p in target.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    adapters = Adapters.begun(target, rank, generator_of(0))
    with masked(target, sites) as masking, adapted(target, adapters):
        masking.set(torch.ones(target.layout.entries, requires_grad=True))
        embedded = target.model.get_input_embeddings()(tokens)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = target.model.base_model(inputs_embeds=embedded).last_hidden_state
        states.sum().backward()
    training = TrainingConfig(length=64, batch=1, gradient_checkpointing="no")
    learn = LearnConfig(start="random", adapter_rank=rank)
    config = PruneConfig("tiny", training=training, learn=learn)
    counted = learning_memory(target, config, 1, 4).kept
    assert 0.9 < counted / sum(kept.values()) < most


def test_what_needs_whole_weights_is_never_held_otherwise(
    llama_folder, text_file, tmp_path, monkeypatch
):
    """A method that looks at weights runs as it did, however little memory there is."""
    monkeypatch.setattr(module, "free_memory", lambda device: 1.0)
    must_run(
        "prune", llama_folder, "--text", text_file, "--method", "magnitude", *SMALL,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
