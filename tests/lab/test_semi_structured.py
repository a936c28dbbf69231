"""2:4 sparsity: the two of every four that a score picks, and what SparseGPT makes of them."""

import itertools

import pytest
import torch
from configurations import DENSE_KINDS, cases
from conftest import moments_of, problem_of

from disp_lab.baselines.two_of_four import dass, magnitude, reconstructed, sparsegpt, wanda
from disp_lab.parts.baseline import Maker, stored_numbers
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.compensating import COLUMNS, DAMPING
from disp_llm.training.problem import PruningProblem

METHODS = [magnitude, wanda, dass, sparsegpt]


@pytest.fixture
def problem_for(text_file, tmp_path):
    """Makes the problem of a model type."""

    def make(model_type: str, **changes) -> PruningProblem:
        return problem_of(model_type, text_file.read_text(), tmp_path, **changes)

    return make


@pytest.fixture
def problem(problem_for) -> PruningProblem:
    return problem_for("llama")


def matrices(prunable: PrunableModel) -> dict[tuple[int, str], torch.Tensor]:
    """Every linear layer's weight as (outputs, inputs)."""
    return {
        (index, path): matrix_of(linear_at(block, path))
        for index, block in enumerate(prunable.blocks)
        for path in prunable.linear_paths(block)
    }


def half(problem: PruningProblem, make: Maker) -> PrunableModel:
    """The model at half the weights."""
    return PrunableModel(make(0.5).model, problem.dense.family)


def correlated(channels: int, seed: int = 0) -> torch.Tensor:
    """`Σ x·xᵀ` of inputs that hang together, in float32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    inputs = torch.randn(3 * channels, channels, generator=generator) @ mixing
    return inputs.T @ inputs


def damped(moment: torch.Tensor) -> torch.Tensor:
    moment = moment.double()
    return moment + DAMPING * moment.diag().mean() * torch.eye(len(moment), dtype=moment.dtype)


def error_of(change: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """`Σ ‖change·x‖²`, a number an output."""
    change = change.double()
    return ((change @ moment.double()) * change).sum(-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", cases(DENSE_KINDS))
def test_two_of_four_in_every_family(problem_for, model_type, method):
    problem = problem_for(model_type)
    before = {key: weight.clone() for key, weight in matrices(problem.dense).items()}
    made = half(problem, method(problem))
    mlp = problem.dense.family.mlp
    across = method is dass and len(mlp.reads) * mlp.fused == 2
    for (index, path), weight in matrices(made).items():
        lines = weight.T if across and path in mlp.reads else weight
        assert ((lines.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all(), (index, path)
        dense = before[index, path]
        assert torch.equal(matrices(problem.dense)[index, path], dense)
        if method is not sparsegpt:
            assert torch.equal(weight[weight != 0], dense[weight != 0])
    assert torch.isfinite(made.model(torch.arange(4, 20)[None]).logits).all()


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.53125), (torch.bfloat16, 0.5625)])
def test_stored_counts_two_bits_a_kept_weight(problem, dtype, share):
    problem.dense.model.to(dtype)
    make = magnitude(problem)
    made = make(0.5)
    dense = stored_numbers(problem.dense)
    assert made.stored == share * dense
    assert made.multiplied == dense / 2
    assert made.model.dtype == dtype
    nonzero = sum(int((w != 0).sum()) for w in matrices(half(problem, make)).values())
    assert nonzero == made.multiplied
    for other in (0.4, 0.5625, 1.0):
        with pytest.raises(InputError, match="keeps half of the weights"):
            make(other)


def test_a_width_without_groups_of_four_is_refused(problem_for):
    problem = problem_for("llama", intermediate_size=50)
    for method in METHODS:
        with pytest.raises(InputError, match="model: 2:4 takes weights in groups of four"):
            method(problem)


def test_magnitude_keeps_the_two_largest(problem_for):
    problem = problem_for("qwen2")
    made = matrices(half(problem, magnitude(problem)))
    for key, dense in matrices(problem.dense).items():
        assert are_best(made[key] != 0, dense.abs()), key


def test_wanda_scores_with_inputs_behind_pruned_blocks(problem):
    """Block i's mask follows from a model of which only the blocks before i are pruned."""
    pruned = half(problem, wanda(problem))
    got, dense = matrices(pruned), matrices(problem.dense)
    last = len(problem.dense.model.model.layers) - 1
    for path in problem.dense.linear_paths(problem.dense.blocks[0]):
        got[last, path].copy_(dense[last, path])
    moments = moments_of(problem, pruned)[last]
    stale = moments_of(problem, problem.dense)[last]
    again = matrices(half(problem, wanda(problem)))
    for path in problem.dense.linear_paths(problem.dense.blocks[0]):
        kept, weight = again[last, path] != 0, dense[last, path].abs()
        assert are_best(kept, weight * norms(moments[path])), path
        assert not are_best(kept, weight * norms(stale[path])), path


def norms(moment: torch.Tensor) -> torch.Tensor:
    return moment.diag() ** 0.5


def are_best(kept: torch.Tensor, scores: torch.Tensor) -> bool:
    """Two of every four in a row, and none of the others scores higher."""
    kept, scores = kept.unflatten(-1, (-1, 4)), scores.unflatten(-1, (-1, 4))
    least = torch.where(kept, scores, torch.inf).amin(-1)
    most = torch.where(kept, -torch.inf, scores).amax(-1)
    return bool((kept.sum(-1) == 2).all() and (least >= most).all())


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_dass_weighs_gate_and_up_by_the_channel_they_feed(problem_for, model_type):
    problem = problem_for(model_type)
    made = matrices(half(problem, dass(problem)))
    dense = matrices(problem.dense)
    mlp = problem.dense.family.mlp
    moments = moments_of(problem, problem.dense)[0]
    middle = norms(moments[mlp.writes]) ** 0.5
    for path in problem.dense.linear_paths(problem.dense.blocks[0]):
        kept, weight = made[0, path] != 0, dense[0, path].abs()
        if path in mlp.reads:
            # Phi-3 has both in one.
            projections = zip(kept.split(48), weight.split(48), strict=True)
            for kept_here, weight_here in projections:
                assert are_best(kept_here.T, weight_here.T * middle), path
                assert not are_best(kept_here.T, weight_here.T), path
        else:
            assert are_best(kept, weight * norms(moments[path])), path


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "falcon"])
def test_dass_is_wanda_without_a_gate(problem_for, model_type):
    problem = problem_for(model_type)
    one, other = (half(problem, method(problem)) for method in (dass, wanda))
    for key, weight in matrices(one).items():
        assert torch.equal(weight, matrices(other)[key])


def test_sparsegpt_follows_exact_solves_column_by_column():
    """The oracle knows no inverse and no blocks: it solves for what is still to come each time."""
    channels = COLUMNS + 12
    weight = torch.randn(5, channels, generator=torch.Generator().manual_seed(1))
    moment = correlated(channels)
    hessian = damped(moment)
    wanted = weight.double()
    for first in range(0, channels, 4):
        four = range(first, first + 4)
        costs = torch.stack([wanted[:, j] ** 2 * loss_of(hessian, j) for j in four], -1)
        order = costs.argsort(-1)
        for place, j in enumerate(four):
            lost = torch.where((order[:, :2] == place).any(-1), wanted[:, j], 0)
            wanted[:, j] -= lost
            if j + 1 < channels:
                rest = hessian[j + 1 :, j + 1 :]
                wanted[:, j + 1 :] += lost[:, None] * torch.linalg.solve(rest, hessian[j + 1 :, j])
    got = reconstructed(weight, moment)
    assert torch.equal(got != 0, wanted != 0)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


def loss_of(hessian: torch.Tensor, column: int) -> torch.Tensor:
    """What a unit in this column is worth once those behind it make up for it: the Schur
    complement."""
    cross, rest = hessian[column, column + 1 :], hessian[column + 1 :, column + 1 :]
    solved = torch.linalg.solve(rest, cross) if len(rest) else cross
    return hessian[column, column] - cross @ solved


def test_sparsegpt_is_least_squares_where_only_left_columns_are_pruned():
    """All that is pruned lies to the left of all that is kept: then nothing is approximate."""
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    weight[:, :2] *= 0.01
    moment = correlated(4)
    hessian = damped(moment)
    got = reconstructed(weight, moment).double()
    dense = weight.double()
    wanted = torch.linalg.solve(hessian[2:, 2:], hessian[2:] @ dense.T).T
    assert (got[:, :2] == 0).all()
    torch.testing.assert_close(got[:, 2:], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(got[:, 2:], dense[:, 2:], rtol=1e-3)


def test_sparsegpt_is_the_best_of_all_masks_for_inputs_that_are_independent():
    weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    moment = torch.diag(torch.tensor([1.0, 9.0, 0.3, 4.0]))
    got = reconstructed(weight, moment)
    errors = []
    for pair in itertools.combinations(range(4), 2):
        lost = torch.zeros_like(weight)
        lost[:, pair] = weight[:, pair]
        errors.append(error_of(lost, damped(moment)))
    torch.testing.assert_close(error_of(weight - got, damped(moment)), torch.stack(errors).amin(0))


def test_sparsegpt_stands_inputs_that_are_always_zero():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    moment = correlated(8)
    moment[:, 2:5] = moment[2:5] = 0
    for given in (moment, torch.zeros(8, 8)):
        got = reconstructed(weight, given)
        assert torch.isfinite(got).all()
        assert ((got.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()


def test_sparsegpt_stays_nearer_than_wanda_and_wanda_than_magnitude(problem):
    """Of the first block, whose inputs no pruning has changed; all outputs together."""
    moments = moments_of(problem, problem.dense)[0]
    dense = matrices(problem.dense)
    for path in problem.dense.linear_paths(problem.dense.blocks[0]):
        errors = []
        for method in (sparsegpt, wanda, magnitude):
            pruned = matrices(half(problem, method(problem)))[0, path]
            errors.append(float(error_of(dense[0, path] - pruned, moments[path]).sum()))
        assert errors == sorted(errors), (path, errors)
        assert errors[0] < 0.9 * errors[1], (path, errors)
