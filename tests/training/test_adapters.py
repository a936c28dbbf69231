"""Adapters beside masks: what is trained is what is exported, and a kill changes nothing."""

import dataclasses

import pytest
import torch
from conftest import masks_of, problem_of, tiny_prunable, with_config
from test_learn import LEARN, TRAINING, Killed, learned

from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.data.randomness import generator_of
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Compensation, Masks, Selection
from disp_llm.masks.selection_file import load_selection, save_selection
from disp_llm.training.adapters import Adapters, adapted
from disp_llm.training.learning import WEIGHTS_GROW
from disp_llm.training.loop import Schedule

ADAPTED = dataclasses.replace(LEARN, adapter_rank=3)
WAYS = {"low rank": (3, False), "weights": (0, True), "both": (3, True)}
"""Rank of the adapters, and whether the weights learn."""


def with_random_changes(target, rank: int, weights: bool) -> Adapters:
    adapters = Adapters.begun(target, rank, generator_of(1), weights)
    for matrix in [*adapters.up, *adapters.delta]:
        matrix.data.normal_(std=0.1, generator=generator_of(len(matrix)))
    return adapters.requires_grad_(False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "opt", "phi3", "gpt2", "gemma3_text"])
def test_what_is_trained_is_what_is_exported(kind, way):
    target = tiny_prunable(kind)
    layout, tokens = target.layout, torch.arange(3, 23)[None]
    adapters, scales = with_random_changes(target, *WAYS[way]), torch.rand(layout.entries) + 0.5
    compensation = Compensation(scales, adapters=adapters.learned())
    masks = Masks(layout, masks_of("random", layout).kept, Selection(scales, compensation))
    with torch.no_grad():
        with masked(target) as masking, adapted(target, adapters) as adapting:
            masking.set(masks.kept * scales)
            adapting.set()
            trained = target.model(tokens).logits
            with adapting.lifted(), masking.lifted():
                lifted = target.model(tokens).logits
            assert torch.equal(target.model(tokens).logits, trained)
        dense = target.model(tokens).logits
        with fold_into_weights(target, masks):
            exported = compact_model(target, masks)(tokens).logits
    torch.testing.assert_close(exported, trained, rtol=1e-4, atol=1e-5)
    assert torch.equal(lifted, dense)
    assert not torch.allclose(exported, dense, atol=1e-3)
    assert torch.equal(target.model(tokens).logits, dense)


def test_steps_are_in_proportion_to_the_weights():
    """Weights three times as large: adapters of the same numbers change them three times as much,
    in training and at export."""
    found = []
    for factor in (1.0, 3.0):
        target = tiny_prunable("llama")
        with torch.no_grad():
            for linear in target.linears():
                linear.weight.mul_(factor)
        adapters = with_random_changes(target, 3, weights=False)
        learned = [pair.up @ pair.down for pair in adapters.learned()]
        used = [up @ down for down, up, _ in adapters.layers()]
        assert all(map(torch.equal, learned, used))
        found.append(learned)
    for once, thrice in zip(*found, strict=True):
        torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize(("rate", "optimizer"), [(0.0, "adamw"), (1e-3, "adamw"), (1e-3, "muon")])
def test_what_is_learned_survives_a_kill_and_the_masks_file(rate, optimizer, text_file, tmp_path):
    config = dataclasses.replace(ADAPTED, weight_rate=rate)
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    settings = {
        "learn_config": config,
        "training": dataclasses.replace(TRAINING, weight_optimizer=optimizer),
    }
    whole = learned(problem, tmp_path / "whole", **settings)
    adapters = whole.compensation.adapters
    assert len(adapters) == len(list(problem.dense.linears()))
    assert all(adapter.up.abs().max() > 0 for adapter in adapters)
    assert all((one.delta is not None) == (rate > 0) for one in whole.compensation.adapters)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learned(problem, tmp_path / "cut", on_step=kill, **settings)
    resumed = learned(problem, tmp_path / "cut", **settings)
    layout = problem.budget.layout
    save_selection(tmp_path / "selection.safetensors", resumed, layout, {})
    read = load_selection(tmp_path / "selection.safetensors", layout).compensation.adapters
    for mine, again in zip(adapters, read, strict=True):
        assert torch.equal(mine.down, again.down)
        assert torch.equal(mine.up, again.up)
        assert (mine.delta is None) == (rate == 0) == (again.delta is None)
        if mine.delta is not None:
            assert mine.delta.any()
            assert torch.equal(mine.delta, again.delta)


def test_learning_begins_as_the_seed_says(text_file, tmp_path):
    """With the same adapters and hypernetwork where it is the same, and with others where not."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    config = dataclasses.replace(ADAPTED, parametrisation="hypernetwork")
    begun = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        seeded = with_config(problem, machine=MachineConfig(device="cpu", seed=seed))
        found = learned(seeded, tmp_path / name, learn_config=config, steps=0)
        begun.append((found.compensation.adapters[0].down, found.importance))
    for one, again, other in zip(*begun, strict=True):
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_adapters_and_weights_learn_to_undo_what_pruning_does(text_file, tmp_path):
    """The divergence from the original falls further with them than without."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    training = dataclasses.replace(TRAINING, distill=1.0, learning_rate=1e-6)
    lost = {}
    dense = [linear.weight.detach().clone() for linear in problem.dense.linears()]
    for name, optimizer, changes in (
        ("masks", "adamw", {"adapter_rank": 0}),
        ("adapters", "adamw", {"adapter_rank": 4, "adapter_rate": 0.01}),
        ("weights", "adamw", {"adapter_rank": 0, "weight_rate": 0.003}),  # without a rank
        ("muon", "muon", {"adapter_rank": 0, "weight_rate": 0.003}),
    ):
        seen: list[float] = []
        config = dataclasses.replace(LEARN, scale_rate=0.0, **changes)
        learned(
            problem,
            tmp_path / name,
            learn_config=config,
            training=dataclasses.replace(training, weight_optimizer=optimizer),
            steps=40,
            on_step=lambda m, seen=seen: seen.append(m["loss"]),
        )
        lost[name] = sum(seen[-8:])
    assert lost["adapters"] < 0.9 * lost["masks"]
    assert lost["weights"] < 0.9 * lost["masks"]
    assert lost["muon"] < 0.9 * lost["masks"]
    for before, linear in zip(dense, problem.dense.linears(), strict=True):
        assert torch.equal(linear.weight, before)  # what is learned lies beside the model


def test_weights_grow_into_their_step_size():
    """Theirs alone, in the first tenth of the steps."""
    schedule = Schedule(dataclasses.replace(TRAINING, schedule="constant"), 40, "")
    rates = [schedule.rate_of({"growing": WEIGHTS_GROW}, step) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.rate_of({}, 0) == 1.0


@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_learn_the_same_weights(text_file, tmp_path):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    config = dataclasses.replace(LEARN, adapter_rank=2, weight_rate=0.001)
    found = [
        learned(
            problem,
            tmp_path / compiled,
            learn_config=config,
            training=dataclasses.replace(TRAINING, compile=compiled),
            steps=3,
        )
        for compiled in ("no", "yes")
    ]
    for mine, other in zip(*(one.compensation.adapters for one in found), strict=True):
        assert (mine.delta - other.delta).abs().max() < 0.1 * mine.delta.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_weights_that_are_not_here_cannot_learn():
    target = tiny_prunable("llama")
    adapters = Adapters.begun(target, 0, generator_of(1), weights=True)
    target.model.to("meta")
    with pytest.raises(InputError, match="weight_rate: cannot learn weights"):  # noqa: SIM117
        with adapted(target, adapters):
            pass
