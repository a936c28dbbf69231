"""REAP's scores against a sum taken expert by expert, with the factors of all tokens."""

from dataclasses import replace

import pytest
import torch
from conftest import problem_of

from disp_lab.methods.reap import reap
from disp_llm.config.errors import InputError
from disp_llm.config.names import EXPERTS, SITES
from disp_llm.masks.budget import Budget
from disp_llm.training.problem import calibration_windows

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def problem(tmp_path, sites=(EXPERTS,)):
    made = problem_of("mixtral", TEXT, tmp_path)
    dense = replace(made.dense, sites=(*SITES, EXPERTS))
    return replace(made, dense=dense, budget=Budget(dense.layout, sites=sites))


def test_the_place_of_an_expert_is_that_of_what_it_adds(tmp_path):
    found = problem(tmp_path)
    importance = reap(found).importance
    block = found.dense.blocks[1].mlp
    seen = []
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for window in calibration_windows(found).tokens:
        found.dense.model(window[None])
    handle.remove()
    hidden = torch.cat([one.flatten(0, 1) for one in seen])
    chances = (hidden @ block.gate.weight.T).softmax(-1)
    chosen = chances.topk(3).indices
    factors = chances / chances.gather(1, chosen).sum(1, keepdim=True)
    scores = []
    for expert in range(6):
        mine = hidden[(chosen == expert).any(1)]
        gate, up = (mine @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
        made = (block.experts.act_fn(gate) * up) @ block.experts.down_proj[expert].T
        factor = factors[(chosen == expert).any(1), expert]
        scores.append(float((made.norm(dim=1) * factor).mean()) if len(mine) else 0.0)
    place = found.budget.layout.names.index("layers.1.experts")
    order = found.budget.layout.split(importance)[place].argsort()
    assert order.tolist() == torch.tensor(scores).argsort().tolist()


def test_other_sites_and_dense_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="whole experts of mixtures and nothing else"):
        reap(problem(tmp_path, sites=(EXPERTS, "mlp_mid")))
    with pytest.raises(InputError, match="whole experts of mixtures and nothing else"):
        reap(problem_of("llama", TEXT, tmp_path))
