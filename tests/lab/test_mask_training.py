"""Rivals that learn masks: they resume bit for bit, and what they learn is what is exported."""

from dataclasses import replace

import pytest
import torch
from conftest import problem_of, run_in, with_config

from disp_lab.parts.mask_training import travelling
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import HEADS, SITES
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Masks
from disp_llm.methods import method_named
from disp_llm.training import loop
from disp_llm.training.problem import PruningProblem

STEPS = 10


@pytest.fixture
def problem(text_file, tmp_path, monkeypatch) -> PruningProblem:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)
    found = problem_of("llama", text_file.read_text(), tmp_path / "first", heads=True)
    training = TrainingConfig(length=32)
    return with_config(found, learn=LearnConfig(steps=STEPS), training=training)


def with_sites_of(problem: PruningProblem, name: str) -> PruningProblem:
    return replace(problem, budget=Budget(problem.budget.layout, sites=method_named(name).sites))


class Killed(Exception):
    """Stands for a kill -9 between two steps."""


@pytest.mark.parametrize("last", [5, 10])  # of GRASPrune's stages, the first and the second
@pytest.mark.parametrize("name", ["sheared", "ddp", "grasprune"])
def test_resumed_equals_uninterrupted(problem, tmp_path, name, last):
    problem = with_sites_of(problem, name)
    choose, steps = method_named(name).choose, []

    def in_folder(folder: str, kill_at: int = 0) -> PruningProblem:
        def on_step(stage, done, total, figures) -> None:
            if stage == "learning masks":
                steps.append(done)
                if done == kill_at:
                    raise Killed

        job = replace(problem.job, run=run_in(tmp_path / folder), progress=on_step)
        return replace(problem, job=job)

    whole = choose(in_folder("whole"))
    with pytest.raises(Killed):
        choose(in_folder("cut", kill_at=last))
    steps.clear()
    resumed = choose(in_folder("cut"))
    assert steps == list(range((last - 1) // 3 * 3 + 1, STEPS + 1))  # from the last checkpoint
    assert torch.equal(resumed.importance, whole.importance)
    scales = resumed.compensation.scales, whole.compensation.scales
    assert scales == (None, None) or torch.equal(*scales)


@pytest.mark.parametrize("sites", [("mlp_mid", HEADS), ("mlp_mid",), SITES])
@pytest.mark.parametrize("name", ["ddp", "grasprune"])
def test_exported_equals_masked_and_scaled(problem, name, sites):
    problem = replace(problem, budget=Budget(problem.budget.layout, sites=sites))
    selection = method_named(name).choose(problem)
    kept = project(selection.importance, problem.budget, 0.6).kept
    masks = Masks(problem.budget.layout, kept, selection)
    tokens = torch.randint(4, 320, (2, 19), generator=torch.Generator().manual_seed(1))
    with masked(problem.dense) as masking:
        masking.set(kept * selection.compensation.scales)
        wanted = problem.dense.model(tokens).logits
        masking.set(kept.float())
        unscaled = problem.dense.model(tokens).logits
    with fold_into_weights(problem.dense, masks):
        compact = compact_model(problem.dense, masks)
    got = compact(tokens).logits
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (unscaled - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_the_same_travel_in_fewer_steps():
    assert travelling(0.02, 1000, 250, most=10.0) == pytest.approx(0.08)
    assert travelling(0.02, 1000, 5, most=10.0) == pytest.approx(0.2)
    assert travelling(0.02, 1000, 0, most=10.0) == pytest.approx(0.2)
    assert travelling(0.02, 1000, 4000, most=10.0) == pytest.approx(0.005)
