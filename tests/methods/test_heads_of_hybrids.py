"""Heads of blocks that differ: scores find what belongs to a head, wherever a layer has it."""

from dataclasses import replace

import pytest
import torch
from conftest import problem_of, with_config

from disp_lab.methods.sheared import sheared
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig
from disp_llm.config.names import HEADS, SITES
from disp_llm.masks.budget import Budget
from disp_llm.methods import method_named

DEAD = 1
"""The key head whose weights are nearly nothing, of the first block."""


@pytest.fixture
def problem(text_file, tmp_path):
    """Qwen 3.5, whose first two blocks have 2 key heads with 2 value heads each, of 8."""
    return problem_of("qwen3_5_text", text_file.read_text(), tmp_path, heads=True)


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_a_head_is_all_that_belongs_to_it(problem, method):
    """In the first layer queries, keys and values come one after the other."""
    linear = problem.dense.blocks[0].linear_attn
    queries, keys = (slice(start + 8 * DEAD, start + 8 * DEAD + 8) for start in (0, 16))
    values = slice(32 + 16 * DEAD, 32 + 16 * DEAD + 16)
    with torch.no_grad():
        for rows in (queries, keys, values):
            linear.in_proj_qkv.weight[rows] *= 1e-3
        linear.in_proj_z.weight[16 * DEAD : 16 * DEAD + 16] *= 1e-3
        for small in (linear.in_proj_a, linear.in_proj_b):
            small.weight[2 * DEAD : 2 * DEAD + 2] *= 1e-3
        linear.out_proj.weight[:, 16 * DEAD : 16 * DEAD + 16] *= 1e-3
    importance = method_named(method).choose(problem).importance
    layout = problem.budget.layout
    heads = layout.named(importance)["layers.0.heads"]
    assert heads.argmin() == DEAD
    if method == "magnitude":  # a logarithm of squares: nothing of a living head is in it
        assert heads[DEAD] < heads[1 - DEAD] - 10


def test_sheared_says_that_blocks_differ(text_file, tmp_path):
    problem = problem_of("bamba", text_file.read_text(), tmp_path, heads=True)
    budget = Budget(problem.budget.layout, sites=(*SITES, HEADS))
    problem = with_config(replace(problem, budget=budget), learn=LearnConfig(steps=2))
    with pytest.raises(InputError, match="one number of heads"):
        sheared(problem)
