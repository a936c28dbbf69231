"""What the lab adds: its methods, its baselines, and what learning can begin at."""

import dataclasses
import re

import pytest
import torch
from conftest import problem_of, with_config

from disp_lab.baselines import all_baselines
from disp_lab.baselines.depth import block_influence
from disp_lab.baselines.greedy import greedy
from disp_lab.baselines.tyr import tyr
from disp_lab.names import BASELINES, MASKS, VARIANTS, compared_methods, mask_methods
from disp_lab.settings import CompareConfig
from disp_lab.variants import VARIANTS as MADE
from disp_llm.commands.planning import require_possible
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.methods import start_names
from disp_llm.config.names import BRANCHES, SITES
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.selection import Masks, Selection
from disp_llm.methods import Method, all_methods, method_named, register

pytestmark = pytest.mark.usefixtures("no_registered_methods")


@pytest.fixture
def problem(text_file, tmp_path):
    found = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    return with_config(found, learn=LearnConfig(steps=2), training=TrainingConfig(length=24))


def test_everything_that_is_named_is_there_in_the_order_of_the_table():
    assert mask_methods() == MASKS
    assert all_methods().keys() == set(MASKS)
    assert tuple(MADE) == VARIANTS
    assert compared_methods() == (*MASKS, *VARIANTS, *BASELINES)


def test_the_starts_are_the_baselines_whose_choice_masks_can_say():
    found = {name for name, one in all_baselines().items() if one.structure}
    assert set(start_names()) == found == {"greedy", "tyr", "depth"}


def test_a_file_holds_what_it_is_named_after():
    for name, found in (all_methods() | all_baselines()).items():
        assert found.name == name
        assert found.title
        assert re.search(r"arXiv \d{4}\.\d{5}|this project|none", found.reference), name


@pytest.mark.parametrize("name", ["masks_only", "mpo"])
def test_a_method_that_is_called_like_a_row_is_refused(name):
    register(Method(name, "Mine", "nowhere", lambda problem: None))
    with pytest.raises(InputError, match=f"methods: '{name}' is a row already"):
        CompareConfig("MODEL").validate()


@pytest.mark.parametrize("name", [name for name in MASKS if name != "reap"])  # of mixtures alone
def test_every_method_gives_every_entry_a_finite_importance(problem, name):
    found = method_named(name).choose(problem)
    assert found.importance.shape == (problem.budget.layout.entries,)
    assert torch.isfinite(found.importance).all()


@pytest.mark.parametrize("name", ["flap", "magnitude"])
def test_fixed_masks_are_those_of_the_start_at_every_size(problem, name):
    """Only what is learned beside them changes."""
    config = LearnConfig(steps=2, start=name, fixed_masks=True, adapter_rank=2)
    several = dataclasses.replace(problem, keeps=(0.8, 0.5))
    found = method_named("learned").choose(with_config(several, learn=config))
    own = method_named(name).choose(with_config(several, learn=config))
    for keep in (0.8, 0.65, 0.5):
        kept = [project(one.importance, problem.budget, keep).kept for one in (found, own)]
        assert torch.equal(*kept)
    assert found.compensation.mean_inputs is None  # what FLAP adds is not what is learned
    assert not torch.equal(found.compensation.scales, torch.ones_like(own.importance))
    assert any(pair.up.any() for pair in found.compensation.adapters)


def fixed(problem, name, **changes):
    """What is kept of the asked size beside scales that learn, and the scales."""
    config = LearnConfig(steps=2, start=name, fixed_masks=True, adapter_rank=0, **changes)
    found = method_named("learned").choose(with_config(problem, learn=config))
    return project(found.importance, problem.budget, min(problem.keeps)), found.compensation.scales


@pytest.mark.parametrize(("name", "prepare"), [("greedy", greedy), ("tyr", tyr)])
def test_scales_can_learn_beside_what_a_baseline_keeps(name, prepare, problem):
    """With the original's weights, not with those that it solves for."""
    kept, scales = fixed(problem, name)
    widths = Masks(problem.budget.layout, kept.kept, Selection(kept.kept.float())).widths
    blocks = prepare(problem)(0.6).model.model.layers
    each = blocks[0].self_attn.head_dim * 2  # queries of a KV head
    assert [each * heads for heads in widths["heads"]] == [
        block.self_attn.o_proj.in_features for block in blocks
    ]
    assert widths["mlp_mid"] == [block.mlp.down_proj.in_features for block in blocks]
    assert not torch.equal(scales, torch.ones_like(scales))


def test_scales_can_learn_beside_blocks_that_short_gpt_keeps(text_file, tmp_path):
    whole = problem_of("llama", text_file.read_text(), tmp_path, num_hidden_layers=4)
    dense = dataclasses.replace(whole.dense, sites=(*SITES, *BRANCHES))
    budget = Budget(dense.layout, sites=BRANCHES)
    problem = dataclasses.replace(whole, dense=dense, budget=budget, keeps=(0.5,))
    problem = with_config(problem, training=TrainingConfig(length=24))
    kept, _ = fixed(problem, "depth")
    influence = block_influence(problem)
    for site in BRANCHES:
        there = kept.kept[dense.layout.entries_of(site)]
        there = there[1:]  # the first attention stays in any case
        best = influence[1:].topk(int(there.sum())).indices
        assert 0 < len(best) < 3
        assert there.nonzero().flatten().tolist() == sorted(best.tolist())


def test_learning_can_begin_at_the_scores_of_another_method(problem):
    config = LearnConfig(steps=0, start="flap")
    begun = method_named("learned").choose(with_config(problem, learn=config)).importance
    order = method_named("flap").choose(problem).importance
    assert (begun[order.argsort()].diff() >= 0).all()
    learned = method_named("learned").choose(with_config(problem, learn=LearnConfig(steps=2)))
    assert not torch.equal(learned.importance.argsort(), order.argsort())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": "flop"}, r"start: no method 'flop' \(nearest: flap\)"),
        ({"start": "learned"}, "start: the method learned takes steps of its own"),
        ({"start": "mpo"}, "start: no method 'mpo'"),
        ({"start": "greedy"}, "keep: the method greedy chooses for one size at a time"),
        ({"start": "tyr"}, "keep: the method tyr chooses for one size at a time"),
        ({"start": "taylor"}, "keep: the method taylor chooses for one size at a time"),
        ({"start": "random"}, "fixed_masks: keeps the masks of scores"),
        ({"estimator": "reinmax", "penalty": 6.0}, "fixed_masks: cannot keep masks that reinmax"),
        ({"scale_rate": 0.0, "adapter_rank": 0}, "fixed_masks: leaves nothing to learn"),
    ],
)
def test_a_start_that_cannot_be_is_refused(settings, said):
    learn = LearnConfig(fixed_masks=True, **settings)
    with pytest.raises(InputError, match=said):
        checked(PruneConfig("MODEL", keep=(0.8, 0.5), learn=learn))


@pytest.mark.parametrize("name", ["greedy", "mpo"])
def test_a_baseline_is_no_method_to_prune_by(name):
    with pytest.raises(InputError, match=f"method: no method '{name}'"):
        checked(PruneConfig("MODEL", method=name))


def test_a_method_that_is_not_ours_begins_nowhere_else():
    with pytest.raises(InputError, match="start: is of the method learned"):
        checked(PruneConfig("MODEL", method="ddp", keep=(0.5,), learn=LearnConfig(start="flap")))


def checked(config: PruneConfig) -> None:
    """What `prune` refuses before it loads anything, and before it makes a folder."""
    config.validate()
    require_possible(config, config.sizes)
