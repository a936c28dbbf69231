"""Baselines that remove blocks or solve weights anew, what runs text through blocks for them, and
the method that learns a given shape."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import problem_of, tiny_prunable, with_config

from disp_lab.baselines import greedy as greedy_module
from disp_lab.baselines.depth import block_influence, depth, keep_blocks
from disp_lab.baselines.greedy import greedy, least_squares, most_similar, solve_blocks
from disp_lab.methods.sheared import HardConcrete, sheared, target_shape
from disp_lab.methods.taylor import METHOD as TAYLOR
from disp_lab.methods.wanda import METHOD as WANDA
from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import copied, stored_numbers
from disp_lab.parts.coupled import Sizes, sizes_of
from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import HEADS, SITES
from disp_llm.data.randomness import generator_of
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import BlockShape
from disp_llm.methods import learned as learned_module
from disp_llm.training.problem import calibration_windows


@pytest.fixture
def problem(text_file, tmp_path):
    return problem_of("llama", text_file.read_text(), tmp_path, heads=True)


def test_visits_are_given_what_enters_each_layer(problem):
    windows = calibration_windows(problem).tokens
    seen = {}
    block = problem.dense.model.model.layers[1]

    def hook(path):
        def keep(module, args):
            seen[path] = args[0].flatten(0, 1).float()

        return block.get_submodule(path).register_forward_pre_hook(keep)

    handles = [hook(path) for path in ("self_attn.v_proj", "mlp.down_proj")]
    problem.dense.model(windows)
    for handle in handles:
        handle.remove()
    found = {}
    visit_blocks(
        problem,
        copied(problem),
        lambda i, block, moments: found.setdefault(i, dict(moments)),
    )
    assert sorted(found) == list(range(len(problem.dense.model.model.layers)))
    for path, inputs in seen.items():
        torch.testing.assert_close(found[1][path], inputs.T @ inputs, rtol=1e-3, atol=1e-4)


def test_blocks_behind_a_changed_one_see_what_it_gives(problem):
    def silence(index, block, moments):
        if index == 0:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        if index == 1:
            found.update(moments)

    found = {}
    visit_blocks(problem, copied(problem), silence)
    windows = calibration_windows(problem).tokens
    block = problem.dense.model.model.layers[1]
    inputs = block.input_layernorm(problem.dense.model.model.embed_tokens(windows)).flatten(0, 1)
    wanted = (inputs.T @ inputs).detach()
    torch.testing.assert_close(found["self_attn.q_proj"], wanted, rtol=1e-3, atol=1e-4)
    assert float(problem.dense.model.model.layers[0].mlp.down_proj.weight.abs().sum()) > 0


def test_influence_is_one_less_the_cosine_of_a_block_s_ends(problem):
    windows = calibration_windows(problem).tokens
    states = problem.dense.model(windows, output_hidden_states=True).hidden_states
    alike = torch.cosine_similarity(states[0], states[1], dim=-1).mean()
    assert float(block_influence(problem)[0]) == pytest.approx(float(1 - alike), rel=1e-4)


@pytest.mark.parametrize("model_type", ["bamba", "gpt_neo", "lfm2", "llama"])
def test_blocks_that_are_left_have_a_cache_of_their_own(model_type):
    cut = tiny_prunable(model_type)
    keep_blocks(cut, [0, 2])
    prompt = torch.arange(3, 23)[None]
    written = [
        cut.model.generate(
            prompt, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*written)


def test_depth_keeps_the_influential_blocks_and_their_order(problem):
    blocks = len(problem.dense.model.model.layers)
    made = depth(problem)(2 / blocks)
    kept = block_influence(problem).topk(2).indices.sort().values.tolist()
    for place, index in enumerate(kept):
        own, from_ = made.model.model.layers[place], problem.dense.model.model.layers[index]
        assert torch.equal(own.mlp.up_proj.weight, from_.mlp.up_proj.weight)
        assert own.self_attn.layer_idx == place
    assert made.stored == problem.budget.dense_block_parameters * 2 / blocks
    assert len(problem.dense.model.model.layers) == blocks
    prompt = torch.arange(8)[None]
    cached = made.model.generate(prompt, max_new_tokens=6, do_sample=False)
    plain = made.model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    with pytest.raises(InputError, match="no block"):
        depth(problem)(0.01)


def test_least_squares_is_the_best_fit():
    torch.manual_seed(0)
    inputs = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight = torch.randn(3, 6, dtype=torch.float64)
    kept = torch.tensor([True, False, True, True, False, True])
    wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    moment = inputs.T @ inputs * 1e6  # so large that the damping does not count
    solved = least_squares(weight, moment, kept)
    error = lambda w: float((inputs @ weight.T - inputs[:, kept] @ w.T).square().sum())  # noqa: E731
    assert error(solved) <= error(weight[:, kept])
    assert error(solved) == pytest.approx(error(wanted), rel=0.05)


@pytest.mark.parametrize(
    ("share", "heads"), [(0.8, 3), (0.67, 3), (0.66, 2), (0.5, 2), (0.3, 1), (0.1, 1)]
)
def test_heads_are_pruned_where_the_share_has_room_for_whole_ones(share, heads):
    block = BlockShape(576, 960, 576, 2, 1536, heads=3)
    sizes = sizes_of(block, share)
    assert sizes.heads == heads
    stored = 576 * (1536 * heads // 3 + 3 * sizes.channels)
    whole = 576 * (1536 + 3 * 1536)
    assert stored <= share * whole < stored + 3 * 576


def test_channels_make_up_for_heads_that_are_kept():
    block = BlockShape(576, 960, 576, 2, 1536)
    assert sizes_of(block, 0.5) == Sizes(0, 512)
    with pytest.raises(InputError, match="no intermediate channel"):
        sizes_of(block, 0.25)


def test_heads_are_pruned_by_the_similarity_of_the_output():
    torch.manual_seed(0)
    inputs, weight = torch.randn(300, 6).double(), torch.randn(4, 6).double()
    whole = (inputs @ weight.T).flatten()
    alike = []
    for head in range(3):
        rest = inputs.clone()
        rest[:, 2 * head : 2 * head + 2] = 0
        alike.append(float(torch.cosine_similarity(whole, (rest @ weight.T).flatten(), dim=0)))
    kept = most_similar(weight, inputs.T @ inputs, heads=3, count=2)
    assert kept.tolist() == [head != alike.index(max(alike)) for head in range(3)]


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_greedy_gives_a_smaller_model_within_the_budget(share, problem):
    made = greedy(problem)(share)
    shape = problem.budget.layout.blocks[0]
    channel = 3 * shape.hidden * len(problem.budget.layout.blocks)
    assert (
        share * problem.budget.dense_block_parameters - channel
        < made.stored
        <= share * problem.budget.dense_block_parameters
    )
    assert made.stored == stored_numbers(PrunableModel(made.model, problem.dense.family))
    assert made.model(torch.arange(8)[None]).logits.isfinite().all()


def test_greedy_keeps_what_adds_most_and_solves_for_it(problem, monkeypatch):
    """In every block, of heads and of channels: what is kept of the layer that writes is where the
    damped error has no slope."""
    found, reconstruct = [], greedy_module._reconstruct

    def watched(block, branch, moment, kept):
        layer = linear_at(block, branch.writes)
        before = layer.weight.detach().double().clone()
        reconstruct(block, branch, moment, kept)
        found.append((before, moment, kept, layer.weight.detach().double()))

    monkeypatch.setattr(greedy_module, "_reconstruct", watched)
    layout = replace(problem.dense, sites=(*SITES, HEADS)).layout
    flat = solve_blocks(problem, copied(problem), layout, 0.5).bool()
    masks = layout.named(flat)
    assert len(found) == 2 * len(layout.blocks)
    for place, (before, moment, kept, after) in enumerate(found):
        block, shape = place // 2, layout.blocks[place // 2]
        if place % 2:
            added = moment.diagonal() * before.square().sum(0)
            assert torch.equal(masks[f"layers.{block}.mlp_mid"], kept)
            assert added[kept].min() > added[~kept].max()
        else:
            heads = masks[f"layers.{block}.heads"]
            assert torch.equal(heads, most_similar(before, moment, shape.heads, int(heads.sum())))
            assert torch.equal(heads.repeat_interleave(shape.q // shape.heads), kept)
        assert 0 < kept.sum() < len(kept)
        assert not after[:, ~kept].any()
        damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))
        slope = (before - after) @ damped[:, kept]
        assert slope.norm() < 1e-3 * (before @ damped[:, kept]).norm()


def test_greedy_at_full_size_is_the_original(problem):
    made = greedy(problem)(1.0)
    tokens = torch.arange(16)[None]
    wanted = problem.dense.model(tokens).logits
    torch.testing.assert_close(made.model(tokens).logits, wanted, rtol=1e-3, atol=1e-4)


def test_hard_concrete_widths_are_what_samples_give_on_average(problem):
    """3,000 blocks with the same probabilities are as many samples of one."""
    shape = problem.budget.layout.blocks[0]
    masks = HardConcrete(3000, shape)
    with torch.no_grad():
        masks.intermediate.copy_(2 * torch.randn(shape.intermediate, generator=generator_of(1)))
    flats = masks.sample(generator_of(0)).view(3000, -1)
    middle = flats[:, 3 * shape.hidden :][:, : shape.intermediate]
    wanted = masks.expected_widths()[2][0].detach()
    assert float((middle > 0).float().sum(1).mean()) == pytest.approx(float(wanted), rel=0.02)


def test_constraint_weighs_every_widths_distance_by_its_own_multipliers(problem):
    """λ·g + φ·g² for the stream, then every block's heads, then its channels."""
    shape = problem.budget.layout.blocks[0]
    masks = HardConcrete(2, shape)
    aim = torch.tensor([0.5 * shape.hidden, 1.0, 0.25 * shape.intermediate])
    with torch.no_grad():
        masks.linear.copy_(torch.arange(1.0, 6.0))
        masks.quadratic.copy_(torch.arange(10.0, 60.0, 10.0))
    kept = float(masks.expected_widths()[0].detach()) / shape.hidden  # of all alike at first
    gaps = [kept - 0.5, *[kept - 1 / shape.heads] * 2, *[kept - 0.25] * 2]
    wanted = sum((1 + i) * g + 10 * (1 + i) * g * g for i, g in enumerate(gaps))
    constraint = masks.constraint(aim)
    assert float(constraint.detach()) == pytest.approx(wanted, rel=1e-5)
    constraint.backward()
    assert masks.linear.grad.tolist() == pytest.approx(gaps, rel=1e-5)  # which ascent follows


def test_sheared_bounds_its_masks_before_every_step(problem, monkeypatch):
    """A step size of 3 would take log α far beyond log 100."""
    monkeypatch.setattr("disp_lab.methods.sheared.RATE", 3.0)
    largest, sample = [], HardConcrete.sample

    def watched(masks, noise):
        largest.append(max(float(log_alpha.detach().abs().max()) for log_alpha in masks.masks))
        return sample(masks, noise)

    monkeypatch.setattr(HardConcrete, "sample", watched)
    budget = Budget(problem.budget.layout, sites=(*SITES, HEADS))
    problem = replace(problem, budget=budget, keeps=(0.5,))
    problem = with_config(problem, learn=LearnConfig(steps=6), training=TrainingConfig(length=32))
    sheared(problem)
    assert max(largest) == pytest.approx(math.log(100))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_sheared_arrives_at_its_target_shape(share, problem):
    budget = Budget(problem.budget.layout, sites=(*SITES, HEADS))
    problem = replace(problem, budget=budget, keeps=(share,))
    problem = with_config(problem, learn=LearnConfig(steps=6), training=TrainingConfig(length=32))
    selection = sheared(problem)
    parts = budget.layout.split(project(selection.importance, budget, share).kept)
    target = target_shape(budget.layout.blocks[0], share)
    widths = torch.tensor([int(part.sum()) for part in parts]).view(-1, 6)
    assert (widths[:, 5] == target.heads).all()
    # What the budget leaves after the shape goes to the likeliest entries outside it.
    wanted = torch.tensor([target.hidden] * 3 + [target.intermediate, target.hidden, target.heads])
    assert (widths - wanted).clamp(max=0).sum() == 0
    assert (widths - wanted).sum() < 0.02 * budget.layout.entries


def test_wanda_keeps_the_heads_and_channels_of_the_largest_scores(problem):
    """‖x‖·|W|, of the columns of the layer that writes, in the first block, before which nothing is
    pruned."""
    problem = replace(problem, keeps=(0.5,))
    chosen = WANDA.choose(problem).importance >= 1
    layout, moments = problem.budget.layout, {}
    visit_blocks(problem, copied(problem), lambda i, block, m: moments.setdefault(i, dict(m)))
    masks = layout.named(chosen)
    block = problem.dense.blocks[0]
    for path, site in (("self_attn.o_proj", "heads"), ("mlp.down_proj", "mlp_mid")):
        weight = linear_at(block, path).weight.double()
        kept = masks[f"layers.0.{site}"]
        columns = moments[0][path].diagonal().double().sqrt() * weight.abs().sum(0)
        scores = columns.view(len(kept), -1).sum(1)
        assert 0 < kept.sum() < len(kept)
        assert scores[kept].min() > scores[~kept].max(), site


def test_taylor_leaves_the_blocks_at_either_end_whole(text_file, tmp_path):
    """A tenth of them each, and the others make up for it."""
    problem = problem_of("llama", text_file.read_text(), tmp_path, heads=True, num_hidden_layers=20)
    layout = problem.budget.layout
    masks = dict(
        zip(layout.names, layout.split(TAYLOR.choose(problem).importance >= 1), strict=True)
    )
    whole = [
        bool(masks[f"layers.{i}.mlp_mid"].all() and masks[f"layers.{i}.heads"].all())
        for i in range(20)
    ]
    assert whole == [True] * 2 + [False] * 16 + [True] * 2
    kept = project(TAYLOR.choose(problem).importance, problem.budget, 0.6).kept
    assert 0.55 < float(problem.budget.share(layout.counts(kept.long()))) <= 0.6


def test_learning_begins_in_the_middle_of_its_sizes(problem, monkeypatch):
    seen = []

    def watched(scores, budget, middle):
        seen.append(middle)
        raise StopIteration

    monkeypatch.setattr(learned_module, "start_logits", watched)
    several = replace(problem, keeps=(0.8, 0.4, 0.5))
    with pytest.raises(StopIteration):
        learned_module.METHOD.choose(several)
    assert seen == [pytest.approx(0.6)]


@pytest.mark.parametrize("model_type", ["bamba", "qwen3_5_text"])
def test_a_hybrid_keeps_a_block_with_attention(model_type, text_file, tmp_path, monkeypatch):
    """Its cache counts tokens by what attention has seen; the last of these blocks has some."""
    influence = "disp_lab.baselines.depth.block_influence"
    monkeypatch.setattr(influence, lambda problem: torch.tensor([2.0, 1.0, 0.0]))
    make = depth(problem_of(model_type, text_file.read_text(), tmp_path))
    make(1.0).model(torch.tensor([[5, 6]]))
    with pytest.raises(InputError, match="leaves no block with attention"):
        make(0.67)
