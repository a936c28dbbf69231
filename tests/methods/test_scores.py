"""Scores: dead entries are found, and the numbers are the ones of the definition."""

from dataclasses import replace

import pytest
import torch
from configurations import VOCABULARY
from conftest import tiny_prunable
from damage import BYTES, names, outcome, rewrite

from disp_llm.config.names import SITES
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.methods import fisher, learned
from disp_llm.methods.fisher import METHOD, ROUNDS, fisher_importance, fisher_scores, per_parameter
from disp_llm.methods.learned import CLAMP, start_logits
from disp_llm.runs.folder import Run
from disp_llm.training.losses import token_losses
from disp_llm.training.problem import PruningProblem, calibration_windows


def windows(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, VOCABULARY, (count, 16), generator=generator)


def importance_of(problem: PruningProblem, sequences: torch.Tensor, keep: float, rounds: int):
    return fisher_importance(replace(problem, keeps=(keep,)), Windows(sequences), rounds)


def test_one_round_is_the_mean_square_of_each_sequences_gradient(problem):
    dense, budget = problem.dense, problem.budget
    by_hand = torch.zeros(budget.layout.entries)
    step = 1e-2  # a tenth of it would leave the float32 losses with too few digits that differ
    entries = [0, 40, 70, 100, 150]  # one of each site of the first block
    with masked(dense) as masking, torch.no_grad():
        for window in windows(2):
            for entry in entries:
                losses = []
                for sign in (1, -1):
                    mask = torch.ones(budget.layout.entries)
                    mask[entry] += sign * step
                    masking.set(mask)
                    losses.append(token_losses(dense, window[None]).double().mean())
                by_hand[entry] += ((losses[0] - losses[1]) / (2 * step)) ** 2 / 2
    measured = importance_of(problem, windows(2), keep=0.5, rounds=1)
    torch.testing.assert_close(measured[entries], by_hand[entries], rtol=2e-2, atol=1e-9)


def test_dimensions_that_are_dead_by_construction_score_lowest(problem):
    budget = problem.budget
    dead_in, dead_mid, dead_out = [1, 5], [2, 3, 40], [0, 31]
    with torch.no_grad():
        for block in problem.dense.model.model.layers:
            for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                linear.weight[:, dead_in] = 0
            for linear in (block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight[:, dead_in] = 0
                linear.weight[dead_mid] = 0
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight[dead_out] = 0
    importance = importance_of(problem, windows(), keep=0.9, rounds=2)
    scores = per_parameter(importance, budget)
    kept = project(scores, budget, 0.9).kept
    dead = {"attn_in": dead_in, "attn_out": dead_out, "mlp_in": dead_in, "mlp_mid": dead_mid,
            "mlp_out": dead_out}  # fmt: skip
    for name, score, mask in zip(
        budget.layout.names, budget.layout.split(scores), budget.layout.split(kept), strict=True
    ):
        dead_here = dead[name.rsplit(".", 1)[1]]
        alive = torch.ones(len(score), dtype=torch.bool)
        alive[dead_here] = False
        assert score[dead_here].max() < score[alive].min(), name
        assert not mask[dead_here].any(), name


def test_later_rounds_stand_at_smaller_models(problem):
    """The gradient at masked entries is taken where others are pruned: the scores differ."""
    budget = problem.budget
    plain = importance_of(problem, windows(), keep=0.5, rounds=1)
    rounds = importance_of(problem, windows(), keep=0.5, rounds=3)
    assert not torch.allclose(plain, rounds, rtol=0.1)
    assert torch.isfinite(per_parameter(rounds, budget)).all()


def test_the_last_round_stands_at_the_asked_size(problem, monkeypatch):
    """Not a rounding error below it: there may be no model that is smaller."""
    sizes = []

    def recorded(scores, budget, size):
        sizes.append(size)
        return project(scores, budget, size)

    monkeypatch.setattr(fisher, "project", recorded)
    importance_of(problem, windows(), keep=0.2, rounds=4)
    assert sizes == pytest.approx([2.2 / 3, 1.4 / 3, 0.2])
    assert sizes[-1] == 0.2


def test_the_method_scores_in_its_rounds(problem):
    scored = METHOD.choose(problem).importance
    sequences = calibration_windows(problem)
    wanted = fisher_importance(problem, sequences, min(ROUNDS, len(sequences)))
    torch.testing.assert_close(scored, per_parameter(wanted, problem.budget))


def test_start_logits_put_the_threshold_at_zero_within_the_clamp(problem):
    budget = problem.budget
    scores = torch.randn(budget.layout.entries, generator=torch.Generator().manual_seed(0)) * 9
    logits = start_logits(scores, budget, 0.5)
    assert logits.abs().max() <= CLAMP
    assert abs(project(logits, budget, 0.5).threshold) < 0.05
    assert torch.equal(project(logits, budget, 0.5).kept, project(scores, budget, 0.5).kept)


def test_heads_and_whole_branches_begin_higher(monkeypatch):
    """So fewer of them are pruned."""
    layout = tiny_prunable("llama", heads=True, branches=True).layout
    sites = layout.sites
    budget = Budget(layout, sites=sites)
    whole = torch.tensor([layout.sites[i % len(sites)] not in SITES for i in layout.site_of_entry])
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(0))
    scores[whole] -= 1.5
    raised = start_logits(scores, budget, 0.5)
    monkeypatch.setattr(learned, "WHOLE_BONUS", 0.0)
    plain = start_logits(scores, budget, 0.5)
    assert torch.equal(raised, start_logits(scores + whole, budget, 0.5))
    kept = [project(logits, budget, 0.5).kept[whole].sum() for logits in (plain, raised)]
    assert kept[0] < kept[1]


SCORES = {
    "are missing": {"fisher": None, "other": torch.zeros(3)},
    "of another model": {"fisher": torch.zeros(3)},
    "of another dtype": {"fisher": torch.zeros(528, dtype=torch.float64)},
    "not finite": {"fisher": torch.full((528,), torch.inf)},
    "negative": {"fisher": torch.full((528,), -1.0)},
}


@pytest.mark.parametrize("what", [*SCORES, *BYTES])
def test_damaged_scores_are_one_line_and_made_again_without_the_file(problem, what, monkeypatch):
    monkeypatch.setattr(Run, "has", lambda run, path: path.exists())  # as if no hash told of it
    assert problem.budget.layout.entries == 528
    whole = fisher_scores(problem, 1)
    path = problem.job.run.scores_file
    if what in BYTES:
        path.write_bytes(BYTES[what](path.read_bytes()))
    else:
        rewrite(path, **SCORES[what])
    assert names(outcome(lambda: fisher_scores(problem, 1)), path)
    path.unlink()
    assert torch.equal(fisher_scores(problem, 1), whole)
