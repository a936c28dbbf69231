"""Týr-the-Pruner: layers pruned to several sizes, and the search among them."""

from dataclasses import replace

import pytest
import torch
from conftest import problem_of

from disp_lab.baselines.tyr import (
    LIKELIEST,
    Search,
    Supernet,
    evenly,
    levels_of,
    tyr,
)
from disp_lab.parts.baseline import copied, stored_numbers
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS, SITES
from disp_llm.data.randomness import generator_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.training.problem import calibration_windows

BLOCKS = 4


@pytest.fixture
def problem(text_file, tmp_path):
    return problem_of(
        "llama", text_file.read_text(), tmp_path, heads=True, num_hidden_layers=BLOCKS
    )


@pytest.fixture
def layout(problem):
    return replace(problem.dense, sites=(*SITES, HEADS)).layout


def layer(inputs: int = 24, outputs: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, inputs that depend on each other, and their second moments."""
    noise = generator_of(3)
    mixed = torch.randn(inputs, inputs, generator=noise)
    x = torch.randn(400, inputs, generator=noise) @ mixed
    return torch.randn(outputs, inputs, generator=noise), x, x.T @ x


def damped(moment: torch.Tensor) -> torch.Tensor:
    return moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(len(moment))


def test_every_size_is_solved_for_and_holds_the_smaller_ones():
    weight, _, moment = layer()
    found = levels_of(weight, moment, 24, 4, {24, 17, 10, 3})
    assert {size: int(level.kept.sum()) for size, level in found.items()} == {
        size: size for size in (24, 17, 10, 3)
    }
    assert torch.equal(found[24].matrix, weight)
    for larger, smaller in ((24, 17), (17, 10), (10, 3)):
        assert (found[larger].kept | ~found[smaller].kept).all()
    for level in found.values():
        assert not level.matrix[:, ~level.kept].any()
        slope = (weight - level.matrix).double() @ damped(moment)[:, level.kept]
        assert slope.norm() < 1e-4 * (weight.double() @ damped(moment)).norm()


def test_one_at_a_time_what_counts_least_is_pruned():
    """`|Γ_p·W_p| + ‖W_p‖²/(2·[H⁻¹]_pp)`, with W solved for those that are left and H⁻¹ of them."""
    weight, _, moment = layer()
    held, left = damped(moment), list(range(24))
    aim = held @ weight.double().T
    for size in range(23, 18, -1):
        of_left = held[left][:, left]
        solved = torch.linalg.solve(of_left, aim[left])
        scores = (aim[left] * solved).sum(1).abs()
        scores += solved.square().sum(1) / (2 * torch.linalg.inv(of_left).diagonal())
        left.pop(int(scores.argmin()))
        kept = levels_of(weight, moment, 24, 1, {size})[size].kept
        assert kept.nonzero().flatten().tolist() == left


def test_a_copy_of_an_input_is_pruned_at_no_cost():
    weight, x, _ = layer()
    weight[:, 5] *= 1e-3  # so that it counts least
    x[:, 5] = x[:, 11]
    level = levels_of(weight, x.T @ x, 24, 16, {23})[23]
    assert level.kept.logical_not().nonzero().flatten().tolist() == [5]
    torch.testing.assert_close(x @ level.matrix.T, x @ weight.T, rtol=1e-2, atol=0.5)


def test_heads_are_pruned_as_wholes():
    weight, _, moment = layer()
    found = levels_of(weight, moment, 6, 1, {4, 1})
    for size, level in found.items():
        heads = level.kept.view(6, 4)
        assert torch.equal(heads.all(1), heads.any(1))
        assert int(heads.all(1).sum()) == size


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_budget_is_met_by_as_many_heads_as_fit(share, problem, layout):
    heads, channels = evenly(problem, layout, share)
    shape = layout.blocks[0]
    assert sum(heads) == int(share * BLOCKS * shape.heads)
    assert max(heads) - min(heads) <= 1
    made = tyr(problem)(share)
    part, of_channel = shape.intermediate // 32 or 1, 3 * shape.hidden
    room = share * problem.budget.dense_block_parameters
    assert room - part * of_channel - of_channel < made.stored <= room
    assert made.stored == stored_numbers(PrunableModel(made.model, problem.dense.family))
    blocks = made.model.model.layers
    assert sum(block.mlp.down_proj.in_features for block in blocks) == sum(channels)
    assert made.model(torch.arange(8)[None]).logits.isfinite().all()


def test_at_full_size_it_is_the_original(problem):
    tokens = torch.arange(16)[None]
    wanted = problem.dense.model(tokens).logits
    torch.testing.assert_close(tyr(problem)(1.0).model(tokens).logits, wanted, rtol=1e-3, atol=1e-4)


def test_a_child_exchanges_within_a_kind(problem, layout):
    counts = evenly(problem, layout, 0.5)
    supernet = Supernet(copied(problem), layout, (1, 4))
    supernet.fill(problem, calibration_windows(problem).tokens, counts)
    noise, parent = generator_of(0), counts
    for _ in range(40):
        child = supernet.child(parent, noise)
        for numbers, before, levels in zip(child, parent, supernet.levels, strict=True):
            assert sum(numbers) == sum(before)
            assert all(number in level for number, level in zip(numbers, levels, strict=True))
        parent = child
    assert parent != counts


def test_later_layers_read_the_mean_of_what_the_sizes_give(problem, layout):
    counts, windows = evenly(problem, layout, 0.5), calibration_windows(problem).tokens
    model = copied(problem)
    supernet = Supernet(model, layout, (1, 4))
    supernet.fill(problem, windows, counts)
    for kind, levels in enumerate(supernet.levels):
        path = model.branches_of(model.blocks[1])[kind].writes
        total = sum(levels[1])
        wanted = sum(level.matrix * size / total for size, level in levels[1].items())
        torch.testing.assert_close(matrix_of(linear_at(model.blocks[1], path)), wanted)


def test_the_search_reads_the_divergence_and_never_loses(problem, layout):
    counts, windows = evenly(problem, layout, 0.5), calibration_windows(problem).tokens
    supernet = Supernet(copied(problem), layout, (1, 4))
    supernet.fill(problem, windows, counts)
    search = Search(problem, supernet, windows)
    best = search.best(counts, generator_of(0), "searching")
    before, after = search.divergences([counts, best], windows).tolist()
    assert after < before
    supernet.set(best)
    dense = problem.dense.model(windows).logits.log_softmax(-1)
    assert dense.shape[-1] <= LIKELIEST
    ours = supernet.model.model(windows).logits.log_softmax(-1)
    assert after == pytest.approx(float((dense.exp() * (dense - ours)).sum(-1).mean()), rel=1e-4)


def test_less_is_lost_where_an_mlp_that_does_nothing_gives_its_channels(problem, layout):
    matrix_of(linear_at(problem.dense.blocks[2], "mlp.down_proj")).mul_(1e-4)
    (heads, channels), windows = evenly(problem, layout, 0.5), calibration_windows(problem).tokens
    supernet = Supernet(copied(problem), layout, (1, 6))
    supernet.fill(problem, windows, (heads, channels))
    a, b, c, d = channels
    counts = [
        (heads, given) for given in [(a, b, c - 18, d + 18), channels, (a, b, c + 18, d - 18)]
    ]
    lost = Search(problem, supernet, windows).divergences(counts, windows)
    assert lost[0] < lost[1] < lost[2]


def test_blocks_of_several_widths_are_refused(problem, layout):
    first, *others = layout.blocks
    uneven = replace(layout, blocks=(replace(first, intermediate=2 * first.intermediate), *others))
    with pytest.raises(InputError, match="model: blocks of several widths"):
        evenly(problem, uneven, 0.5)


@pytest.mark.parametrize(
    ("model_type", "share", "said"),
    [
        ("llama", 0.02, "keep: leaves no intermediate channel"),
        ("gemma4_text", 0.5, "sites: gemma4_text cannot lose whole heads"),
        ("qwen3_next", 0.5, "model: blocks of several kinds"),
    ],
)
def test_what_it_cannot_prune_is_refused(model_type, share, said, text_file, tmp_path):
    other = problem_of(model_type, text_file.read_text(), tmp_path)
    with pytest.raises(InputError, match=said):
        tyr(other)(share)
