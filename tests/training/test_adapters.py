"""Adapters beside masks: what is trained is what is exported, and a kill changes nothing."""

import dataclasses

import pytest
import torch
from conftest import masks_of, problem_of, tiny_prunable
from test_learn import LEARN, TRAINING, Killed, learned

from disp_llm.data.randomness import generator_of
from disp_llm.export.cutting import compact_model
from disp_llm.export.folding import fold_into_weights
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Compensation, Masks, Selection, load_masks
from disp_llm.training.adapters import Adapters, adapted

ADAPTED = dataclasses.replace(LEARN, adapter_rank=3)


def with_random_up(target) -> Adapters:
    adapters = Adapters.begun(target, 3, generator_of(1))
    for up in adapters.up:
        up.data.normal_(std=0.1, generator=generator_of(len(up)))
    return adapters.requires_grad_(False)


@pytest.mark.parametrize("kind", ["llama", "opt", "phi3", "gpt2", "gemma3_text"])
def test_what_is_trained_is_what_is_exported(kind):
    target = tiny_prunable(kind)
    layout, tokens = target.layout, torch.arange(3, 23)[None]
    adapters, scales = with_random_up(target), torch.rand(layout.entries) + 0.5
    compensation = Compensation(scales, adapters=adapters.pairs())
    masks = Masks(layout, masks_of("random", layout).kept, Selection(scales, compensation))
    with torch.no_grad():
        with masked(target) as masking, adapted(target, adapters) as adapting:
            masking.set(masks.kept * scales)
            trained = target.model(tokens).logits
            masking.set(torch.ones(layout.entries))
            with adapting.lifted():
                lifted = target.model(tokens).logits
        dense = target.model(tokens).logits
        with fold_into_weights(target, masks):
            exported = compact_model(target, masks)(tokens).logits
    torch.testing.assert_close(exported, trained, rtol=1e-4, atol=1e-5)
    assert torch.equal(lifted, dense)
    assert not torch.allclose(exported, dense, atol=1e-3)
    assert torch.equal(target.model(tokens).logits, dense)


def test_learned_adapters_survive_a_kill_and_the_masks_file(text_file, tmp_path):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    whole = learned(problem, tmp_path / "whole", learn_config=ADAPTED)
    adapters = whole.compensation.adapters
    assert len(adapters) == len(list(problem.dense.linears()))
    assert all(adapter.up.abs().max() > 0 for adapter in adapters)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learned(problem, tmp_path / "cut", learn_config=ADAPTED, on_step=kill)
    resumed = learned(problem, tmp_path / "cut", learn_config=ADAPTED)
    layout = problem.budget.layout
    masks = Masks(layout, masks_of("random", layout).kept, resumed)
    masks.save(tmp_path / "masks.safetensors", with_adapters=True)
    read = load_masks(tmp_path / "masks.safetensors", layout).compensation.adapters
    for mine, again in zip(adapters, read, strict=True):
        assert torch.equal(mine.down, again.down)
        assert torch.equal(mine.up, again.up)


def test_adapters_learn_to_undo_what_pruning_does(text_file, tmp_path):
    """The divergence from the original falls further with them than without."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    training = dataclasses.replace(TRAINING, distill=1.0, learning_rate=1e-6)
    lost = {}
    for rank in (0, 4):
        seen: list[float] = []
        config = dataclasses.replace(LEARN, adapter_rank=rank, scale_rate=0.0, adapter_rate=0.01)
        learned(
            problem,
            tmp_path / str(rank),
            learn_config=config,
            training=training,
            steps=40,
            on_step=lambda m, seen=seen: seen.append(m["loss"]),
        )
        lost[rank] = sum(seen[-8:])
    assert lost[4] < 0.9 * lost[0]
