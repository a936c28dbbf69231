"""GISP: scores are those of the weights, sizes nest, and some blocks stay whole."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import problem_of, tiny_prunable, with_config

from disp_lab.methods import gisp
from disp_llm.config.errors import InputError
from disp_llm.config.names import COUPLED, HEADS
from disp_llm.config.parts import ScoreConfig
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.masking import masked
from disp_llm.training.problem import PruningProblem, calibration_windows


@pytest.fixture
def problem(text_file, tmp_path) -> PruningProblem:
    found = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    return replace(found, budget=Budget(found.budget.layout, sites=COUPLED))


def by_hand(model, windows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Scores of the two heads and of the channels of every block: means over their weights of
    |w·∂/∂w| of the mean loss of all windows."""
    weights = [p for p in model.model.layers.parameters() if p.dim() == 2]
    for weight in weights:
        weight.requires_grad_(True)
    model(windows, labels=windows).loss.backward()
    found = []
    for layer in model.model.layers:
        changes = {
            name: (module.weight * module.weight.grad).abs()
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        q, k, v, o, gate, up, down = changes.values()
        heads = []
        for group in range(2):  # two queries of 8 a group, one key and one value
            queries, own = slice(16 * group, 16 * group + 16), slice(8 * group, 8 * group + 8)
            parts = [q[queries], k[own], v[own], o[:, queries]]
            heads.append(torch.cat([part.flatten() for part in parts]).mean())
        channels = [torch.cat([gate[i], up[i], down[:, i]]).mean() for i in range(len(gate))]
        found.append((torch.stack(heads), torch.stack(channels)))
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
    return found


def assert_scores(layout: Layout, flat: torch.Tensor, wanted: list) -> None:
    parts = layout.named(flat)
    for index, (heads, channels) in enumerate(wanted):
        torch.testing.assert_close(parts[f"layers.{index}.heads"], heads, rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(parts[f"layers.{index}.mlp_mid"], channels, rtol=1e-3, atol=1e-8)


def test_scores_are_mean_changes_of_the_loss_over_the_weights(problem):
    windows, dense = calibration_windows(problem), problem.dense
    wanted = by_hand(dense.model, windows.tokens)
    assert_scores(dense.layout, gisp.mean_changes(dense, windows), wanted)
    assert not any(linear.weight.requires_grad for linear in dense.linears())
    assert all(linear.weight.grad is None for linear in dense.linears())


def test_scores_behind_masks_are_those_of_weights_set_to_zero(problem):
    windows, dense = calibration_windows(problem), problem.dense
    kept = torch.ones(dense.layout.entries)
    parts = dense.layout.named(kept)
    parts["layers.0.heads"][1] = 0
    parts["layers.1.mlp_mid"][5:20] = 0
    with masked(dense) as masking:
        masking.set(kept)
        found = gisp.mean_changes(dense, windows)
    first, second, _ = dense.model.model.layers
    with torch.no_grad():
        first.self_attn.o_proj.weight[:, 16:] = 0
        first.self_attn.q_proj.weight[16:] = 0
        first.self_attn.k_proj.weight[8:] = 0
        first.self_attn.v_proj.weight[8:] = 0
        second.mlp.down_proj.weight[:, 5:20] = 0
        second.mlp.gate_proj.weight[5:20] = 0
        second.mlp.up_proj.weight[5:20] = 0
    assert_scores(dense.layout, found, by_hand(dense.model, windows.tokens))
    assert float(dense.layout.split(found)[5][1]) == 0


def test_every_round_removes_the_lowest_of_what_is_left(problem, monkeypatch):
    """Against a plain loop that takes one structure after the other."""
    budget, layout = problem.budget, problem.budget.layout
    problem = replace(problem, keeps=(0.8, 0.5))
    noise = torch.Generator().manual_seed(0)
    rounds = [torch.rand(layout.entries, generator=noise) for _ in range(4)]
    given = iter(rounds)
    monkeypatch.setattr(gisp, "mean_changes", lambda dense, windows, teacher: next(given))
    importance = gisp.gisp(problem).importance
    assert next(given, None) is None  # four sequences, a round each
    kept = torch.ones(layout.entries, dtype=torch.bool)
    for number, scores in enumerate(rounds, start=1):
        left = (1 - 0.5 * number / 4) * budget.dense_block_parameters
        for entry in scores.argsort().tolist():
            site = layout.site_of_entry == layout.site_of_entry[entry]
            fits = float(budget.cost(layout.counts(kept.long()))) <= left
            if not fits and kept[entry] and not budget.never_pruned[entry]:
                kept[entry] = int((kept & site).sum()) == 1
        found = project(importance, budget, 1 - 0.5 * number / 4).kept
        assert torch.equal(found, kept), number
    survivors = kept & ~budget.never_pruned
    order = importance[survivors].argsort()
    assert torch.equal(order, rounds[-1][survivors].argsort())


def test_sizes_nest(problem):
    importance = gisp.gisp(replace(problem, keeps=(0.5,))).importance
    sizes = [project(importance, problem.budget, share).kept for share in (0.5, 0.6, 0.7, 0.8)]
    for smaller, larger in itertools.pairwise(sizes):
        assert not (smaller & ~larger).any()
        assert (larger & ~smaller).any()


@pytest.mark.parametrize("sequences", [4, 2])
def test_there_are_no_more_rounds_than_sequences(problem, monkeypatch, sequences):
    scores = ScoreConfig(calibration_sequences=sequences, calibration_length=32)
    seen, original = [], gisp.mean_changes

    def watched(dense, windows, *teacher):
        seen.append(len(windows))
        return original(dense, windows)

    monkeypatch.setattr(gisp, "mean_changes", watched)
    gisp.gisp(with_config(problem, scores=scores))
    assert seen == [1] * sequences


def test_the_first_tenth_and_the_last_block_are_spared(problem):
    block = problem.budget.layout.blocks[0]
    layout = Layout((block,) * 20)
    spared = [bool(part.all()) for part in layout.split(gisp.spared_entries(layout))]
    for name, whole in zip(layout.names, spared, strict=True):
        index, site = int(name.split(".")[1]), name.split(".")[2]
        assert whole == (index in (0, 1, 19) or site not in COUPLED)
    few = problem.budget.layout
    assert not any(
        bool(part.any())
        for name, part in zip(few.names, few.split(gisp.spared_entries(few)), strict=True)
        if name.endswith((HEADS, "mlp_mid"))
    )


def test_a_size_below_the_spared_blocks_is_refused(problem):
    dense = tiny_prunable("llama", heads=True, num_hidden_layers=10)
    budget = Budget(dense.layout, sites=COUPLED)
    with pytest.raises(InputError, match=r"0\.22 is less than what gisp leaves whole"):
        gisp.gisp(replace(problem, dense=dense, budget=budget, keeps=(0.22,)))


def test_scores_that_are_no_numbers_are_refused(problem):
    with torch.no_grad():
        problem.dense.model.model.layers[0].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"^method: gave numbers that are not finite"):
        gisp.gisp(problem)
