"""DDP: gates and their score, the penalty, the loss of a step, and the exact cut."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import problem_of, with_config

from disp_lab.methods import ddp
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import COUPLED, HEADS
from disp_llm.data.randomness import random_stream
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.masking import masked
from disp_llm.masks.shapes import BlockShape
from disp_llm.training.problem import PruningProblem


@pytest.fixture
def problem(text_file, tmp_path) -> PruningProblem:
    found = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    return with_config(found, learn=LearnConfig(steps=4), training=TrainingConfig(length=32))


@pytest.mark.parametrize("width", [0.5, 0.1])
def test_the_score_is_0_at_0_and_1_at_twice_the_width(width):
    gate = torch.tensor([0.0, width / 2, width, 2 * width, 3.0], requires_grad=True)
    found = ddp.score(gate, width)
    within = 1.2 / (1 + math.exp(1.2)) - 0.1
    torch.testing.assert_close(found, torch.tensor([0.0, within, 0.5, 1.0, 1.0]))
    found.sum().backward()
    soft = torch.sigmoid(2.4 * (gate.detach() / width - 1))  # its slope, at the clamped ends too
    torch.testing.assert_close(gate.grad, 1.2 * soft * (1 - soft) * 2.4 / width)


def test_a_gate_is_the_relu_with_a_slope_of_one():
    gates = ddp.Gates(torch.tensor([-0.1, 0.0, 0.7, 2.0]), kinds=1)
    gate = gates()
    assert gate.tolist() == pytest.approx([0.0, 0.0, 0.7, 2.0])
    gate.sum().backward()
    assert gates.z.grad.tolist() == [1.0] * 4


def test_the_width_falls_with_the_root_of_what_is_done():
    assert ddp.width_at(24, 100) == pytest.approx(0.5 - 0.4 * 0.5)
    assert ddp.width_at(99, 100) == pytest.approx(0.1)


def test_the_penalty_weighs_the_gap_its_square_and_what_is_between():
    gates = ddp.Gates(torch.zeros(1), kinds=2)
    with torch.no_grad():
        gates.linear.copy_(torch.tensor([-2.0, 3.0]))
        gates.quadratic.copy_(torch.tensor([5.0, 7.0]))
        gates.binary.copy_(torch.tensor([11.0, 13.0]))
    scores = [torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.25, 1.0])]
    found = gates.penalty(scores, [0.1, 0.2])
    # Pruned by score: 0.25 and 0.5, so 0.15 and 0.3 too much.
    wanted = -2 * 0.15 + 5 * 0.15**2 + 11 * (0.25 / 2)
    wanted += 3 * 0.3 + 7 * 0.3**2 + 13 * (2 * 0.25 * 0.75 / 3)
    assert found.item() == pytest.approx(wanted)


def test_the_first_step_differentiates_cross_entropy_and_twice_the_divergence(problem):
    """At first all multipliers are 0, so the loss is the model's alone."""
    seen = []
    job = replace(problem.job, progress=lambda stage, done, total, figures: seen.append(figures))
    problem = replace(problem, job=job)
    kinds = ddp.kinds_of(problem.budget, 0.6)
    ddp.trained_gates(problem, kinds, steps=1)
    model, layout = problem.dense.model, problem.budget.layout
    noise = random_stream("steps", problem.seed, 0, 0)
    windows = problem.corpus.draw(problem.training.batch, 32, noise)
    tokens = windows.tokens
    z = 1 + 0.01 * torch.randn(layout.entries, generator=random_stream("start", problem.seed))
    gated = kinds[0].entries | kinds[1].entries
    dense = model(tokens).logits[:, :-1].log_softmax(-1)
    with masked(problem.dense) as masking:
        masking.set(torch.where(gated, z, 1.0))
        given = model(tokens).logits[:, :-1].log_softmax(-1)
    cross_entropy = -given.gather(-1, tokens[:, 1:, None]).mean()
    divergence = (dense.exp() * (dense - given)).sum(-1).mean()
    assert float(divergence) > 0
    assert seen[0]["loss"] == pytest.approx(float(cross_entropy + 2 * divergence), rel=1e-5)


def test_multipliers_ascend_and_gates_close(problem):
    """Nothing is pruned at first: λ1 falls below 0 and λ2 rises until gates close."""
    kinds = ddp.kinds_of(problem.budget, 0.6)
    gates = ddp.trained_gates(problem, kinds, steps=40)
    assert (gates.quadratic > 0).all()
    assert (gates.binary > 0).all()
    for kind in kinds:
        closed = float((gates.z[kind.entries] < 0.2).float().mean())
        assert closed == pytest.approx(kind.target, abs=0.2)
    assert gates.z.min().item() >= ddp.FLOOR - 0.05  # the last step may pass it


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8])
def test_kinds_meet_the_budget_with_whole_heads(share):
    block = BlockShape(576, 960, 576, 2, 1536, heads=3)
    budget = Budget(Layout((block,) * 30), sites=COUPLED)
    heads, channels = ddp.kinds_of(budget, share)
    assert heads.kept == math.ceil(share * 90)
    stored = 576 * (512 * heads.kept + 3 * channels.kept)
    whole = share * budget.dense_block_parameters
    assert whole - 3 * 576 < stored <= whole
    assert channels.target == pytest.approx(1 - share, abs=0.02)


def test_channels_alone_pay_for_the_whole_budget(problem):
    budget = Budget(problem.budget.layout, sites=("mlp_mid",))
    (channels,) = ddp.kinds_of(budget, 0.8)
    left = 0.2 * budget.dense_block_parameters
    assert channels.target * 3 * 48 * 3 * 32 == pytest.approx(left, abs=3 * 32)


def test_sites_that_it_does_not_know_are_refused(problem):
    budget = Budget(problem.budget.layout, sites=("attn_in",))
    with pytest.raises(InputError, match=r"^sites: ddp prunes at mlp_mid and heads"):
        ddp.ddp(replace(problem, budget=budget))


def test_the_highest_z_of_each_kind_are_kept_with_their_gates_as_scales(problem, monkeypatch):
    layout = problem.budget.layout
    z = torch.randn(layout.entries, generator=torch.Generator().manual_seed(2))
    for site, part in zip(layout.names, layout.split(z), strict=True):
        if HEADS in site:
            part[0] = 9.0  # no block loses all of its heads
    monkeypatch.setattr(ddp, "trained_gates", lambda problem, kinds, steps: ddp.Gates(z, 2))
    selection = ddp.ddp(problem)
    kept = project(selection.importance, problem.budget, 0.6).kept
    for kind in ddp.kinds_of(problem.budget, 0.6):
        highest = z[kind.entries].topk(kind.kept).values.min()
        assert torch.equal(kept[kind.entries], z[kind.entries] >= highest)
        scales = selection.compensation.scales[kind.entries]
        assert torch.equal(scales, z[kind.entries].clamp(min=0.1))
    assert (selection.compensation.scales[problem.budget.never_pruned] == 1).all()
    assert (z[kept] < 0.1).any()  # a gate that had closed and is kept
