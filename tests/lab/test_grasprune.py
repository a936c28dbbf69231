"""GRASPrune: masks on the budget at every step, slopes for all, then scales under fixed masks."""

import pytest
import torch
from conftest import problem_of, with_config

from disp_lab.methods import grasprune
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import HEADS
from disp_llm.masks.budget import project
from disp_llm.methods.fisher import fisher_scores
from disp_llm.runs.tensors import read_tensors
from disp_llm.training import loop
from disp_llm.training.checkpoints import checkpoints
from disp_llm.training.problem import PruningProblem


@pytest.fixture
def problem(text_file, tmp_path) -> PruningProblem:
    found = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    training = TrainingConfig(length=32)
    return with_config(found, learn=LearnConfig(steps=10), training=training)


def test_what_is_dropped_has_the_slope_of_its_probability():
    gates = grasprune.Gates(torch.tensor([2.0, -1.0, 0.5]))
    mask = torch.tensor([1.0, 0.0, 0.0])
    gate = gates.through(mask)
    torch.testing.assert_close(gate, mask)
    (gate * torch.tensor([1.0, 3.0, 5.0])).sum().backward()
    p = 1 / (1 + (-gates.masks.detach() / 1.5).exp())
    torch.testing.assert_close(gates.masks.grad, torch.tensor([1.0, 3.0, 5.0]) * p * (1 - p) / 1.5)


def test_scales_lie_between_a_half_and_one_and_a_half():
    gates = grasprune.Gates(torch.zeros(3))
    with torch.no_grad():
        gates.scales.copy_(torch.tensor([-99.0, 0.0, 99.0]))
    assert gates.factors().tolist() == [0.5, 1.0, 1.5]


def test_learning_begins_in_the_order_of_the_scores(problem):
    without_steps = with_config(problem, learn=LearnConfig(steps=0))
    selection = grasprune.grasprune(without_steps)
    prunable = ~problem.budget.never_pruned
    start = selection.importance[prunable]
    assert torch.equal(start.argsort(), fisher_scores(problem, 1)[prunable].argsort())
    assert float(start.mean()) == pytest.approx(0, abs=1e-6)
    assert float(start.std()) == pytest.approx(1.0)
    assert (selection.compensation.scales == 1).all()


def test_masks_are_learned_first_and_then_scales_of_what_they_keep(problem, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 8)
    selection = grasprune.grasprune(problem)
    first, last = (
        read_tensors(path, "").tensors for path in checkpoints(problem.job.run.checkpoint_folder)
    )
    masks, scales = "trained.of_method.masks", "trained.of_method.scales"
    assert not last[masks].equal(torch.zeros_like(last[masks]))
    assert torch.equal(first[masks], last[masks])
    assert (first[scales] == 0).all()
    assert torch.equal(last[masks], selection.importance)
    assert float(last["optimizer.0.1.step"]) == 2  # of ten, the second stage's own
    kept = project(selection.importance, problem.budget, 0.6).kept
    moved = selection.compensation.scales != 1
    assert moved.any()
    assert not (moved & ~kept).any()
    assert not (moved & problem.budget.never_pruned).any()


def test_masks_move_in_the_first_stage(problem):
    start = grasprune.grasprune(with_config(problem, learn=LearnConfig(steps=0))).importance
    learned = grasprune.grasprune(problem).importance
    prunable = ~problem.budget.never_pruned
    moved = (learned - start).abs()[prunable]
    assert (moved > 0).float().mean() > 0.9  # what is dropped moves too
    assert float(moved.max()) <= 8 * 0.1 * 1.5  # eight steps of 0.1; Adam's can be a little longer


def test_every_step_meets_the_budget_and_no_block_is_emptied(problem, monkeypatch):
    seen = []

    def watched(*arguments, **named):
        seen.append(project(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(grasprune, "project", watched)
    start = torch.zeros(problem.budget.layout.entries)
    layout = problem.budget.layout
    for site, part in zip(layout.names, layout.split(start), strict=True):
        if site.startswith("layers.1.") and (HEADS in site or "mlp_mid" in site):
            part.fill_(-9.0)
    grasprune.trained_gates(problem, start, steps=10)
    assert len(seen) == 10
    for found in seen:
        counts = layout.counts(found.kept.long())
        assert float(problem.budget.share(counts)) <= 0.6
        assert int(counts.min()) >= 1
    assert int(layout.split(seen[0].kept)[6 + 5].sum()) == 1  # the heads of block 1: one came back
    assert torch.equal(seen[8].kept, seen[9].kept)
