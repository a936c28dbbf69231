"""What fits is counted, said by `doctor`, and taken by `prune` without changing the masks."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, run_command, tiny_prunable
from safetensors.torch import load_file

from disp_llm.cli.parsing import parse
from disp_llm.commands import ways as commands_ways
from disp_llm.commands.ways import ROOM, ways
from disp_llm.config.frozen import FrozenConfig
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.randomness import generator_of
from disp_llm.masks.masking import masked
from disp_llm.training.hypernetwork import PARAMETRISATIONS, build
from disp_llm.training.memory import learning_memory, recovery_memory


def examined(folder, *flags: object) -> dict:
    done = run_command("doctor", folder, "--json", "--seconds", 0, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_doctor_lists_every_way_and_names_the_first_that_fits(llama_folder):
    result = examined(llama_folder, "--devices", "4x80GB")
    assert result["devices"] == 4
    assert result["memory_free_bytes"] == 80e9
    assert result["advice"] == "fits"
    of = {way["name"]: way for way in result["ways"]}
    assert list(of)[:4] == [
        "as it is",
        "--gradient-checkpointing yes",
        "--shard full",
        "--shard full --gradient-checkpointing yes",
    ]
    assert [name for name, way in of.items() if not way["exact"]] == [
        "--base-precision int8",
        "--base-precision nf4",
    ]
    sizes = {name: way["memory_bytes"] for name, way in of.items()}
    assert sizes["--gradient-checkpointing yes"] < sizes["as it is"]
    assert sizes["--base-precision nf4"] < sizes["--base-precision int8"] < sizes["as it is"]
    between = sizes["--gradient-checkpointing yes"] / ROOM / 1e9 * 1.0001
    found = examined(llama_folder, "--devices", f"{between:.9f}GB")
    assert found["advice"] == "fits with --gradient-checkpointing yes"
    assert examined(llama_folder, "--devices", "0.000001GB")["advice"].startswith("does not fit")


def test_doctor_measures_this_machine(llama_folder):
    done = run_command("doctor", llama_folder, "--json", "--seconds", 0.05)
    assert all(way["learning_s"] > 0 for way in json.loads(done.stdout)["ways"])


@pytest.mark.parametrize("said", ["many", "4x", "0x80GB", "80"])
def test_devices_that_are_none(said, llama_folder):
    done = run_command("doctor", llama_folder, "--devices", said)
    assert done.returncode == 2
    assert "--devices:" in done.stderr


@pytest.mark.parametrize("way", [1, 2])
def test_prune_takes_the_first_way_that_fits(
    way, llama_folder, text_file, tmp_path, monkeypatch, caplog
):
    """Less memory than the plain way takes: blocks run again, or are read from the files; every
    number stays the same."""
    target = tiny_prunable("llama")
    settings = parse(["prune", str(llama_folder), *SMALL])
    takes = [one.memory.total for one in ways(target, settings, 1, 4, on_gpu=False)][way]
    monkeypatch.setattr(commands_ways, "free_memory", lambda device: takes / ROOM * 1.0001)
    command = ("prune", llama_folder, "--text", text_file, *SMALL, "--compile", "no")
    done = run_command(*command, "--output-dir", tmp_path / "little")
    assert done.returncode == 0, done.stderr
    name = ("--gradient-checkpointing yes", "--offload disk")[way - 1]
    assert f"GiB; with {name} it is" in caplog.text
    monkeypatch.undo()
    done = run_command(*command, "--output-dir", tmp_path / "much")
    assert done.returncode == 0, done.stderr
    assert "GiB; with" not in done.stderr
    little, much = (load_file(tmp_path / run / "masks.safetensors") for run in ("little", "much"))
    assert all((little[name] == much[name]).all() for name in much)
    assert (tmp_path / "little" / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "much" / "model" / "model.safetensors"
    ).read_bytes()


def test_weights_that_learn_are_not_read_from_files(
    llama_folder, text_file, tmp_path, monkeypatch, caplog
):
    """However little memory is free: they are held whole, in the way that takes least."""
    monkeypatch.setattr(commands_ways, "free_memory", lambda device: 1)
    flags = ("--text", text_file, *SMALL, "--weight-rate", 0.001, "--output-dir", tmp_path)
    done = run_command("prune", llama_folder, *flags)
    assert done.returncode == 0, done.stderr
    assert "GiB; with --gradient-checkpointing yes it is" in caplog.text


@pytest.mark.parametrize("flags", [("--base-precision", "int8"), ("--offload", "disk")])
def test_held_models_are_measured_as_the_original(flags, llama_folder, text_file, tmp_path):
    """Figures of the original are the original's, and the folder is proven against its weights."""
    command = ("prune", llama_folder, "--text", text_file, "--json", *SMALL)
    results = []
    for more, name in (((), "plain"), (flags, "held")):
        done = run_command(*command, *more, "--output-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    plain, held = results
    assert held["dense"]["perplexity"] == plain["dense"]["perplexity"]
    (model,) = held["models"]
    assert model["max_logit_error"] <= 1e-5
    assert model["perplexity"] == pytest.approx(model["perplexity_masked"], rel=1e-5)
    done = run_command("export", tmp_path / "held", "--keep", 0.7, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["max_logit_error"] <= 1e-5


def test_what_excludes_each_other_is_refused(llama_folder, text_file):
    command = ("prune", llama_folder, "--text", text_file, *SMALL)
    for flags, said in (
        (("--offload", "disk", "--base-precision", "int8"), "--base-precision: weights in files"),
        (("--offload", "cpu", "--shard", "full"), "--shard: cannot be given together"),
        (("--offload", "disk", "--method", "wanda"), "--method: wanda looks at weights"),
    ):
        done = run_command(*command, *flags)
        assert done.returncode == 2
        assert said in done.stderr


def test_memory_falls_with_what_is_saved():
    target = tiny_prunable("llama")
    config = PruneConfig("tiny")

    def parts(frozen: FrozenConfig, recomputes: str = "no", processes: int = 1):
        training = replace(config.training, gradient_checkpointing=recomputes)
        settings = replace(config, training=training)
        return learning_memory(target, settings, frozen, processes, 4)

    plain = parts(FrozenConfig("no"))
    blocks = sum(p.numel() for block in target.blocks for p in block.parameters())
    assert plain.weights == 4 * target.parameters
    assert parts(FrozenConfig("full"), processes=4).weights == pytest.approx(
        4 * (target.parameters - blocks) + blocks
    )
    assert parts(FrozenConfig("no"), "yes").kept < plain.kept
    assert parts(FrozenConfig("no", offload="disk"), "yes").weights == 4 * (
        target.parameters - blocks
    )


def test_all_that_learns_is_counted():
    """Held against what is really trained, or kept."""
    target = tiny_prunable("llama")
    entries = target.layout.entries

    def counted(**learn):
        config = PruneConfig("tiny", learn=LearnConfig(scale_rate=0.0, adapter_rank=0, **learn))
        training = replace(config.training, gradient_checkpointing="no")
        return learning_memory(target, replace(config, training=training), FrozenConfig("no"), 1, 4)

    for name in PARAMETRISATIONS:
        made = build(name, torch.zeros(entries), target.layout, generator_of(0))
        numbers = sum(one.numel() for one in made.parameters())
        assert counted(parametrisation=name).trained == 24 * numbers
    assert counted(estimator="policy_gradient").kept == 0 < counted().kept


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi", "opt"])
def test_what_is_kept_for_the_backward_pass_is_counted(model_type):
    """As autograd keeps it, of tensors that are no weights."""
    target = tiny_prunable(model_type)
    tokens = torch.arange(4, 68)[None]
    own = {p.untyped_storage().data_ptr() for p in target.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with masked(target) as masking:
        masking.set(torch.ones(target.layout.entries, requires_grad=True))
        embedded = target.model.get_input_embeddings()(tokens)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = target.model.base_model(inputs_embeds=embedded).last_hidden_state
        states.sum().backward()
    training = TrainingConfig(length=64, batch=1, gradient_checkpointing="no")
    config = PruneConfig("tiny", training=training)
    counted = learning_memory(target, config, FrozenConfig("no"), 1, 4).kept
    assert 0.9 < counted / sum(kept.values()) < 1.5


def test_adapters_of_recovery_are_counted():
    target = tiny_prunable("llama")
    widths = sum(sum(linear.weight.shape) for linear in target.linears())
    of_rank = {
        rank: recovery_memory([target], RecoverConfig("tiny", how="lora", rank=rank), 2, 4)
        for rank in (4, 8)
    }
    assert of_rank[8] - of_rank[4] == 4 * 16 * widths


def test_what_needs_whole_weights_is_never_held_otherwise(
    llama_folder, text_file, tmp_path, monkeypatch
):
    """A method that looks at weights runs as it did, however little memory there is."""
    monkeypatch.setattr(commands_ways, "free_memory", lambda device: 1.0)
    done = run_command(
        "prune", llama_folder, "--text", text_file, "--method", "magnitude", *SMALL,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_doctor_says_which_size_fits(llama_folder, tmp_path, text_file):
    """And that size, pruned, takes no more."""
    flags = ("--workload-length", 64, "--workload-batch", 2)
    whole = examined(llama_folder, "--fit", "1GB", *flags)["fit"]
    assert whole["target"] == 1
    fits = f"{whole['dense_bytes'] * 0.7e-6:.6f}MB"
    some = examined(llama_folder, "--fit", fits, *flags)["fit"]
    assert some["target"] == pytest.approx(0.7, abs=2e-4)
    none = examined(llama_folder, "--fit", "0.001MB", *flags)["fit"]
    assert none["target"] is None
    assert none["bytes"] < none["smallest_bytes"] < some["bytes"]
    said = run_command("doctor", llama_folder, "--seconds", 0, "--fit", fits, *flags).stderr
    asked = " ".join(said.split()).partition("70.0% of it fits, prune ")[2].split()[:8]
    assert asked == ["--budget", "memory", "--target", some["asked"], *map(str, flags)]
    done = run_command(
        "prune", llama_folder, "--method", "magnitude", *asked,
        "--text", text_file, "--output-dir", tmp_path / "run", "--json", *SMALL,
        "--dtype", "auto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)["models"]
    assert made["target"] == pytest.approx(some["target"], rel=1e-12)  # counted alike
    assert 0.6 < made["share_of_budget"] <= some["target"]
    said = run_command("doctor", llama_folder, "--seconds", 0, "--fit", "1GB", *flags).stderr
    assert "a KV cache of 2 × 64 tokens" in said
    assert "it fits as it is" in said
