"""Scores of experts that are packed transposed, with gate and up row by row and biases (gpt-oss),
against the same weights in the form that others have."""

from dataclasses import replace

import pytest
import torch
from conftest import problem_of

from disp_lab.methods.magnitude import magnitude
from disp_lab.methods.reap import reap
from disp_llm.config.names import EXPERTS, SITES
from disp_llm.masks.budget import Budget
from disp_llm.training.problem import PruningProblem

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def problem(tmp_path, sites) -> PruningProblem:
    made = problem_of("gpt_oss", TEXT, tmp_path)
    dense = replace(made.dense, sites=(*SITES, EXPERTS))
    return replace(made, dense=dense, budget=Budget(dense.layout, sites=sites))


def test_magnitude_counts_the_rows_and_columns_of_a_dimension(tmp_path):
    found = problem(tmp_path, (*SITES, EXPERTS))
    layout = found.budget.layout
    scores = magnitude(found).importance + found.budget.entry_costs.log()
    squares = layout.named(scores.exp())
    mixture = found.dense.blocks[1].mlp
    router, experts = mixture.router.weight.square(), mixture.experts
    gate, up = experts.gate_up_proj[..., ::2].square(), experts.gate_up_proj[..., 1::2].square()
    down = experts.down_proj.square()
    middle = (gate + up).sum(1) + down.sum(2)
    wanted = {
        "mlp_in": (gate + up).sum((0, 2)) + router.sum(0),
        "mlp_mid": middle.flatten(),
        "mlp_out": down.sum((0, 1)),
        "experts": middle.sum(1) + router.sum(1),
    }
    for site, numbers in wanted.items():
        torch.testing.assert_close(squares[f"layers.1.{site}"], numbers, rtol=1e-4, atol=1e-5)


def test_reap_takes_what_an_expert_adds_with_its_bias(tmp_path):
    found = problem(tmp_path, (EXPERTS,))
    before = reap(found).importance
    place = found.budget.layout.names.index("layers.1.experts")
    last = found.budget.layout.split(before)[place].argsort()[0]
    found.dense.blocks[1].mlp.experts.down_proj_bias.data[last] += 1000
    found.dense.blocks[1].mlp.router.bias.data[last] += 1  # so that it has a token
    after = found.budget.layout.split(reap(found).importance)[place]
    assert after.argmax() == last
    assert float(after[last]) == pytest.approx(5 / 6)
