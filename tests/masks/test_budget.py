"""Counting and projection: never above the budget, never a group to spare."""

from dataclasses import replace

import pytest
import torch
from conftest import sites_with, tiny_prunable
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, HEADS, SITES
from disp_llm.evaluation.benchmark import count
from disp_llm.evaluation.timing import Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget, TooSmall, project
from disp_llm.masks.costs import (
    byte_costs,
    flop_costs,
    memory_costs,
    parameter_costs,
)
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.shapes import BlockShape
from disp_llm.models.kv_cache import cached_tokens, with_cache


@st.composite
def layouts(draw) -> Layout:
    width = st.integers(1, 40)
    blocks = draw(
        st.lists(
            st.builds(
                BlockShape,
                hidden=width,
                qkv=width,
                q=width,
                num_input_projections=st.sampled_from([1, 2]),
                intermediate=width,
            ),
            min_size=1,
            max_size=4,
        )
    )
    return Layout(tuple(blocks))


def scores_for(layout: Layout, seed: int, ties: bool) -> torch.Tensor:
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(seed))
    return scores.round() if ties else scores


@settings(max_examples=150, deadline=None)
@given(
    layouts(), st.floats(0.05, 1.0), st.sampled_from([1, 3, 8]), st.integers(0, 9), st.booleans()
)
def test_projection_is_within_and_wastes_less_than_a_group(layout, keep, align, seed, ties):
    budget = Budget(layout)
    scores = scores_for(layout, seed, ties)
    try:
        kept = project(scores, budget, keep, align).kept
    except InputError:
        smallest = torch.tensor([min(align, length) for length in layout.lengths])
        assert budget.keep(smallest) > keep
        return
    counts = layout.counts(kept.long())
    assert budget.keep(counts) <= keep
    assert (counts >= 1).all()
    for width, length in zip(counts.tolist(), layout.lengths, strict=True):
        assert width % align == 0 or width == length

    if not kept.all():  # the best group that was left out does not fit
        grown = counts.clone()
        best, where = -torch.inf, -1
        for site, (part, mask) in enumerate(
            zip(layout.split(scores), layout.split(kept), strict=True)
        ):
            left = part[~mask].sort(descending=True).values[:align]
            if len(left) and left.double().mean() > best:
                best, where = float(left.double().mean()), site
        grown[where] += min(align, layout.lengths[where] - int(counts[where]))
        if not ties:
            assert budget.keep(grown) > keep


@settings(max_examples=50, deadline=None)
@given(layouts(), st.floats(0.3, 1.0), st.integers(0, 9))
def test_kept_entries_score_at_least_as_high_as_dropped_ones(layout, keep, seed):
    scores = scores_for(layout, seed, ties=False)
    try:
        chosen = project(scores, Budget(layout), keep)
    except InputError:
        return
    best = [part.argmax() for part in layout.split(scores)]  # kept come what may
    offset, forced = 0, torch.zeros(layout.entries, dtype=torch.bool)
    for index, length in zip(best, layout.lengths, strict=True):
        forced[offset + index] = True
        offset += length
    free = scores[chosen.kept & ~forced]
    dropped = scores[~chosen.kept]
    if len(free) and len(dropped):
        assert free.min() > chosen.threshold > dropped.max()


@pytest.mark.parametrize("keep", [0.71, 0.75, 0.85])
def test_what_is_kept_for_no_score_has_no_part_in_the_threshold(keep):
    """Here the last entries of all, which no budget prunes, while no second group has room."""
    layout = tiny_prunable("llama").layout
    scores = scores_for(layout, 0, ties=False)
    scores[layout.entries_of("mlp_out")] = -8.0
    chosen = project(scores, Budget(layout, sites=("mlp_mid",)), keep, align=24)
    middle = layout.entries_of("mlp_mid")
    means = scores[middle].view(3, 48).sort(descending=True).values.view(3, 2, 24).mean(2)
    kept = chosen.kept[middle].view(3, 48).sum(1) == 48
    assert int(kept.sum()) == (keep > 0.8)
    assert means[~kept, 1].max() < chosen.threshold < means[:, 0].min()


def slowly_chosen(scores: torch.Tensor, layout: Layout, keep: float, least: float) -> torch.Tensor:
    """What `project` keeps with `least_cut`, one entry at a time: which sites stay whole by the
    longest prefix of all entries that fits with them, then the longest prefix of what is left."""
    budget, lengths = Budget(layout), torch.tensor(layout.lengths)
    may_be_whole = torch.tensor([n > 1 and i % 5 != 3 for i, n in enumerate(layout.lengths)])

    def longest_prefix(kept: torch.Tensor, rounded: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found = None
        rest = [i for i in scores.argsort(descending=True).tolist() if not kept[i]]
        for number in range(len(rest) + 1):
            trial = kept.clone()
            trial[rest[:number]] = True
            counts = layout.counts(trial.double())
            whole = may_be_whole & (lengths - counts < least * lengths)
            counts = torch.where(whole & rounded, lengths, counts)
            if budget.keep(counts) <= keep:
                found = trial, whole
        assert found is not None
        return found

    best = torch.cat([part == part.max() for part in layout.split(scores)])
    _, whole = longest_prefix(best, rounded=True)
    return longest_prefix(best | whole[layout.site_of_entry], rounded=False)[0]


@settings(max_examples=40, deadline=None)
@given(layouts(), st.floats(0.2, 1.0), st.sampled_from([0.1, 0.3]), st.integers(0, 9))
def test_a_site_that_would_hardly_be_cut_stays_whole(layout, keep, least, seed):
    layout = Layout(layout.blocks[:1])
    scores = scores_for(layout, seed, ties=False)
    try:
        kept = project(scores, Budget(layout, least_cut=least), keep).kept
    except InputError:
        assert Budget(layout).keep(torch.ones(5)) > keep
        return
    assert torch.equal(kept, slowly_chosen(scores, layout, keep, least))


def test_few_entries_of_a_site_are_left_and_more_of_another_pruned():
    layout = Layout((BlockShape(100, 300, 100, 2, 200),))
    scores = torch.ones(layout.entries)
    scores[:5], scores[300:420] = -1.0, -0.5  # of attn_in and of mlp_mid
    plain, rounded = (
        layout.counts(project(scores, Budget(layout, least_cut=least), 0.75).kept.long()).tolist()
        for least in (0.0, 0.1)
    )
    assert plain == [95, 100, 100, 121, 100]
    assert rounded == [100, 100, 100, 116, 100]


@settings(max_examples=50, deadline=None)
@given(
    layouts(),
    st.floats(0.3, 1.0),
    st.sampled_from([1, 3]),
    st.sets(st.sampled_from(SITES), min_size=1),
    st.integers(0, 9),
)
def test_sites_that_are_left_alone_stay_whole(layout, keep, align, sites, seed):
    budget = Budget(layout, sites=tuple(sites))
    scores = scores_for(layout, seed, ties=False)
    try:
        kept = project(scores, budget, keep, align).kept
    except InputError:
        fewest = [
            min(align, length) if SITES[index % 5] in sites else length
            for index, length in enumerate(layout.lengths)
        ]
        assert budget.keep(torch.tensor(fewest)) > keep
        return
    assert budget.keep(layout.counts(kept.long())) <= keep
    for index, mask in enumerate(layout.split(kept)):
        assert mask.any()
        assert SITES[index % 5] in sites or mask.all()


@st.composite
def layouts_with_branches(draw) -> Layout:
    """Blocks of two kinds of attention, with heads, that may lose whole branches."""
    kinds = draw(st.lists(st.sampled_from(["full", "sliding"]), min_size=2, max_size=5))
    shape = BlockShape(24, 48, 24, 2, 30, heads=3, branches=True)
    return Layout(tuple(replace(shape, kind=kind) for kind in kinds))


@settings(max_examples=80, deadline=None)
@given(layouts_with_branches(), st.floats(0.1, 1.0), st.sampled_from([1, 8]), st.integers(0, 9))
def test_whole_branches_within_the_budget(layout, keep, align, seed):
    """What is in a pruned branch costs nothing; one that is passed over had no room; what a cache
    tells its length by stays."""
    budget = Budget(layout, sites=layout.sites)
    scores = scores_for(layout, seed, ties=False)
    try:
        chosen = project(scores, budget, keep, align)
    except InputError:
        return
    counts = layout.counts(chosen.kept.long())
    effective = layout.counts(layout.without_dropped(chosen.kept).long())
    assert budget.keep(counts) == budget.keep(effective) <= keep
    widths = effective.view(len(layout.blocks), -1)
    kinds = [block.kind for block in layout.blocks]
    for place, block in enumerate(widths.tolist()):
        s1, s2, s3, s4, s5, heads, attention, mlp = block
        assert [bool(n) for n in (s1, s2, heads)] == [bool(attention)] * 3
        assert [bool(n) for n in (s3, s4, s5)] == [bool(mlp)] * 3
        assert attention or place != kinds.index(kinds[place])
    for site, mask in enumerate(layout.split(chosen.kept)):
        name = layout.sites[site % 8]
        if name in BRANCHES and not mask and layout.split(scores)[site] > chosen.threshold:
            grown = counts.clone()
            grown[site] = 1
            assert budget.keep(grown) > keep


def test_price_of_a_whole_branch_is_all_that_goes_with_it():
    target = tiny_prunable("qwen3", heads=True, branches=True)  # with norms of q and k
    layout = target.layout
    budget, block = Budget(layout), layout.blocks[1]
    entry = sum(layout.lengths[: len(layout.sites) + layout.sites.index("attention")])
    assert float(budget.entry_costs[entry]) == block.hidden * (block.qkv + block.q)
    kept = torch.ones(layout.entries, dtype=torch.bool)
    kept[entry] = False
    counts = layout.counts(layout.without_dropped(kept).long())
    attention = sum(p.numel() for p in target.blocks[1].self_attn.parameters())
    assert budget.removed_parameters(counts) == attention + block.hidden  # and its norm


def test_uniform_heads_are_passed_over_where_there_is_no_room():
    """A head of every block is a large step: channels fill what is left of the budget."""
    target = tiny_prunable("llama", heads=True)
    budget = Budget(target.layout, sites=("mlp_mid", HEADS), uniform=True)
    for seed in range(6):
        for share in (0.8, 0.6, 0.5):
            kept = project(scores_for(target.layout, seed, False), budget, share).kept
            masks = Masks(target.layout, kept, Selection(kept.float()))
            assert len(set(masks.widths[HEADS])) == len(set(masks.widths["mlp_mid"])) == 1
            channel = float(budget.entry_costs[~budget.never_pruned].min()) * len(target.blocks)
            left = share - float(budget.keep(masks.counts))
            assert 0 <= left * budget.dense_block_parameters < channel


def test_block_parameters_by_hand():
    biases = {("attn_out",): 1, ("mlp_mid",): 2, ("mlp_out",): 1}
    shape = BlockShape(
        hidden=10, qkv=14, q=8, num_input_projections=2, intermediate=20, biases=biases
    )
    budget = Budget(Layout((shape,)))
    assert budget.dense_block_parameters == 10 * 14 + 10 * 8 + 2 * 10 * 20 + 20 * 10
    counts = torch.tensor([3, 4, 5, 6, 7])
    assert int(budget.block_parameters(counts)) == 3 * 14 + 4 * 8 + 2 * 5 * 6 + 6 * 7
    weights = budget.dense_block_parameters - int(budget.block_parameters(counts))
    assert budget.removed_parameters(counts) == weights + (10 - 4) + 2 * (20 - 6) + (10 - 7)
    assert budget.active_parameters(counts) == int(budget.block_parameters(counts))


def test_entry_cost_is_what_removing_it_saves():
    shape = BlockShape(hidden=6, qkv=9, q=5, num_input_projections=2, intermediate=7)
    budget = Budget(Layout((shape, shape)))
    for entry in range(budget.layout.entries):
        kept = torch.ones(budget.layout.entries, dtype=torch.long)
        kept[entry] = 0
        saved = budget.dense_block_parameters - int(
            budget.block_parameters(budget.layout.counts(kept))
        )
        assert saved == budget.entry_costs[entry]


def test_an_entry_that_costs_nothing_leaves_costs_finite():
    layout = Layout((BlockShape(32, 64, 32, 2, 48),) * 2)
    costs = parameter_costs(layout)
    free = replace(
        costs, terms={at: prices for at, prices in costs.terms.items() if HEADS not in at}
    )
    costs = Budget(layout, free).entry_costs
    assert costs.log().isfinite().all()
    assert float(costs.min() / costs.max()) == pytest.approx(1e-6)


def test_keep_one_keeps_everything():
    shape = BlockShape(hidden=6, qkv=9, q=5, num_input_projections=1, intermediate=7)
    layout = Layout((shape,))
    assert project(torch.randn(layout.entries), Budget(layout), 1.0).kept.all()


def test_impossible_keep_names_the_setting():
    shape = BlockShape(hidden=6, qkv=9, q=5, num_input_projections=1, intermediate=7)
    layout = Layout((shape,))
    with pytest.raises(InputError, match=r"^keep: "):
        project(torch.randn(layout.entries), Budget(layout), 1e-6)


def test_count_is_differentiable_and_exact_beyond_float32():
    """LLaMA-2-70B has 6.7e10 block parameters; float32 would be off by thousands."""
    shape = BlockShape(8192, 8192 + 2 * 1024, 8192, 2, 28672)
    budget = Budget(Layout((shape,) * 80))
    counts = torch.tensor(budget.layout.lengths) - 1
    by_hand = 80 * (8191 * 10240 + 8191 * 8192 + 2 * 8191 * 28671 + 28671 * 8191)
    assert int(budget.block_parameters(counts)) == by_hand
    ones = torch.ones(10, requires_grad=True)
    small = Budget(Layout((BlockShape(2, 3, 4, 2, 2),)))
    small.keep(small.layout.counts(ones)).backward()
    torch.testing.assert_close(ones.grad * small.dense_block_parameters, small.entry_costs)


@pytest.mark.parametrize("model_type", ["llama", "opt", "phi", "gpt2", "qwen2", "gemma2", "youtu"])
@pytest.mark.parametrize("kind", ["params", "total", "flops", "bytes"])
def test_a_budget_of_any_kind_is_what_the_cut_model_costs(model_type, kind):
    target = tiny_prunable(model_type)
    layout, head, parameters = target.layout, target.head_weight.numel(), target.parameters
    costs = {
        "params": None,
        "total": byte_costs(layout, parameters, 1),
        "flops": flop_costs(layout, head),
        "bytes": byte_costs(layout, parameters, 4),
    }[kind]
    budget = Budget(layout, costs)
    scores = scores_for(layout, 0, ties=False)
    masks = Masks(layout, project(scores, budget, 0.6).kept, Selection(scores))
    both = (target, PrunableModel(compact_model(target, masks), target.family))
    linear = [count(one, Workload("prefill", 1, 1)).block_flops for one in both]
    costs = {
        "params": [operations // 2 for operations in linear],
        "total": [sum(p.numel() for p in one.model.parameters()) for one in both],
        "flops": [operations + 2 * head for operations in linear],
        "bytes": [4 * one.parameters for one in both],
    }[kind]
    assert int(budget.dense_cost) == costs[0]
    assert int(budget.cost(layout.counts(masks.kept.long()))) == costs[1]
    assert 0.6 * costs[0] - float(budget.entry_costs.max()) < costs[1] <= 0.6 * costs[0]


def test_a_share_that_masks_have_exactly_is_met():
    """0.7 of 23,040 parameters are 16,128; as a product of two floats, a little less."""
    layout = tiny_prunable("llama").layout
    budget = Budget(layout, sites=("mlp_mid",))
    assert 0.7 * budget.dense_block_parameters < 16_128
    for align in (1, 24):  # all masks, and the smallest that there are
        kept = project(scores_for(layout, 0, ties=False), budget, 0.7, align).kept
        assert int(budget.block_parameters(layout.counts(kept.long()))) == 16_128


def test_the_smallest_model_can_be_asked_for_as_it_is_said():
    """0.4125 of the block parameters is not said as 0.41, which would be refused again."""
    budget = Budget(tiny_prunable("llama").layout, sites=("mlp_mid",))
    scores = torch.zeros(budget.layout.entries)
    with pytest.raises(TooSmall, match=r"smallest model, 0\.42; ask for more"):
        project(scores, budget, 0.3)
    project(scores, budget, 0.42)


def test_half_of_llama_2_7b_is_what_the_authors_ask_for():
    """Their 0.48 of the block parameters is half of all (arXiv 2410.11988, released code)."""
    hidden, inside, vocabulary, blocks = 4096, 11008, 32000, 32
    shape = BlockShape(hidden, 3 * hidden, hidden, 2, inside)
    layout = Layout((shape,) * blocks)
    parameters = blocks * (4 * hidden**2 + 3 * hidden * inside)
    parameters += 2 * vocabulary * hidden + (2 * blocks + 1) * hidden  # embeddings, head, norms
    assert parameters == 6_738_415_616
    costs, counts = byte_costs(layout, parameters, 1), torch.tensor(layout.lengths)
    assert costs.dense_cost == float(costs.cost(counts)) == parameters
    outside = costs.constant
    assert outside == 2 * vocabulary * hidden + (2 * blocks + 1) * hidden
    keep = (0.5 * parameters - outside) / Budget(layout).dense_block_parameters
    assert keep == pytest.approx(0.4797, abs=5e-5)
    scores = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    kept = project(scores, Budget(layout, costs), 0.5).kept
    assert float(Budget(layout).keep(layout.counts(kept.long()))) == pytest.approx(keep, abs=1e-4)


@pytest.mark.parametrize(
    ("model_type", "heads"),
    [
        ("llama", True),
        ("llama", False),
        ("mistral", True),
        ("gemma2", False),
        ("opt", False),
        ("minicpm3", False),
    ],
)
@pytest.mark.parametrize("branches", [False, True])
def test_memory_is_that_of_the_weights_and_of_a_filled_cache(model_type, heads, branches):
    target = replace(tiny_prunable(model_type), sites=sites_with(heads, branches))
    if hasattr(target.model.config, "sliding_window"):
        target.model.config.sliding_window = 16  # reached by the 24 tokens below
    layout, batch, length = target.layout, 2, 24
    cached = cached_tokens(target.model, length, batch)
    costs = memory_costs(layout, target.parameters, 4, cached)
    budget = Budget(layout, costs, sites=layout.sites)
    scores = torch.rand(layout.entries, generator=torch.Generator().manual_seed(1))
    kept = layout.without_dropped(project(scores, budget, 0.75).kept)
    masks = Masks(layout, kept, Selection(scores))
    compact = compact_model(target, masks)
    cache = DynamicCache(config=compact.config)
    with torch.no_grad():
        compact(torch.ones(batch, length, dtype=torch.long), **with_cache(compact, cache))
    filled = [layer for layer in cache.layers if layer.is_initialized]
    held = [t.numel() for layer in filled for t in (layer.keys, layer.values)]
    weights = sum(parameter.numel() for parameter in compact.parameters())
    assert float(budget.cost(masks.counts)) == 4 * (weights + sum(held))
    assert 0.65 < float(budget.share(masks.counts)) <= 0.75


@pytest.mark.parametrize("kind", ["params", "flops", "bytes", "memory"])
def test_what_no_site_cuts_goes_with_its_attention(kind):
    """Multi-head latent attention has linear layers between those that read and that which
    writes."""
    target = tiny_prunable("youtu", branches=True)
    layout, parameters = target.layout, target.parameters
    costs = {
        "params": parameter_costs(layout),
        "flops": flop_costs(layout, target.head_weight.numel()),
        "bytes": byte_costs(layout, parameters, 4),
        "memory": memory_costs(layout, parameters, 4, [10] * len(layout.blocks)),
    }[kind]
    kept = torch.ones(layout.entries, dtype=torch.bool)
    assert costs.cost(layout.counts(kept.long())) == pytest.approx(costs.dense_cost)
    layout.split(kept)[layout.names.index("layers.1.attention")][:] = False
    masks = Masks(layout, layout.without_dropped(kept), Selection(torch.zeros(layout.entries)))
    small = PrunableModel(compact_model(target, masks), target.family)
    gone = {
        "params": target.block_parameters - small.block_parameters,
        "flops": 2 * (target.block_parameters - small.block_parameters),
        "bytes": 4 * (parameters - small.parameters),
        "memory": 4 * (parameters - small.parameters + 10 * layout.blocks[1].cached),
    }[kind]
    assert costs.dense_cost - costs.cost(masks.counts) == pytest.approx(gone)
