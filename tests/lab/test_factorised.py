"""Factorised layers: the truncation is the best there is, and what is stored is what is counted."""

import itertools
import math

import pytest
import torch
from configurations import DENSE_KINDS, cases
from conftest import moments_of, problem_of, tiny_model
from torch import nn

from disp_lab.baselines.joint_rank_k import (
    SharedFactor,
    factorise_jointly,
    groups_of,
    joint_basis,
    joint_rank_k,
)
from disp_lab.baselines.mpo import Shape, local_widths, mpo, shape_of, shared_chains
from disp_lab.baselines.svd_llm import factorise, svd_llm, whitened_basis
from disp_lab.parts.baseline import copied, stored_numbers
from disp_lab.parts.low_rank import LowRank, as_linear, rank_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import FAMILIES

METHODS = [svd_llm, joint_rank_k, mpo]
UNCUT = 10**6
"""A limit above every bond."""


@pytest.fixture
def problem_for(text_file, tmp_path):
    """Makes the problem of a model type."""
    return lambda model_type: problem_of(model_type, text_file.read_text(), tmp_path)


@pytest.fixture
def problem(problem_for):
    return problem_for("llama")


def stored_in(model, problem) -> int:
    """Numbers in the blocks' matrices of a model that a baseline made."""
    return stored_numbers(PrunableModel(model, problem.dense.family))


def weight_of(block: nn.Module, path: str) -> torch.Tensor:
    """(outputs, inputs), multiplied out where the layer has been factorised."""
    module = block.get_submodule(path)
    if isinstance(module, LowRank):
        return module.left.weight.detach() @ module.right.weight.detach()
    return matrix_of(linear_at(block, path))


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def error_of(change: torch.Tensor, moment: torch.Tensor) -> float:
    """`‖change·X‖²`."""
    change = change.double()
    return float(((change @ moment.double()) * change).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", cases(DENSE_KINDS))
def test_every_family_runs_within_its_share(problem_for, model_type, method):
    problem = problem_for(model_type)
    if FAMILIES[model_type].alternatives and method is not svd_llm:
        with pytest.raises(InputError, match="blocks of several kinds"):
            method(problem)
        return
    before = {name: p.clone() for name, p in problem.dense.model.named_parameters()}
    tokens = torch.arange(4, 20)[None]
    wanted = problem.dense.model(tokens).logits
    make = method(problem)
    made = make(0.8)
    full = stored_numbers(problem.dense)
    assert 0.6 * full < made.stored <= 0.8 * full
    if method is mpo:
        assert made.multiplied == full == stored_in(made.model, problem)
    else:
        assert made.multiplied == made.stored == stored_in(made.model, problem)
    got = made.model(tokens).logits
    assert torch.isfinite(got).all()
    assert not torch.allclose(got, wanted, atol=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in problem.dense.model.named_parameters())
    whole = make(1.0)
    assert whole.stored == whole.multiplied == full
    assert torch.equal(whole.model(tokens).logits, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_has_the_dtype_of_the_model(problem, method):
    problem.dense.model.to(torch.bfloat16)
    made = method(problem)(0.7)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(made.model(torch.arange(4, 20)[None]).logits).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_share_without_room_is_refused(problem, method):
    make = method(problem)
    with pytest.raises(InputError, match="keep: "):
        make(0.01)


def test_joint_rank_k_cannot_go_below_what_has_no_joint_factor(problem):
    make = joint_rank_k(problem)  # v, o and down are 0.4 of the tiny blocks
    with pytest.raises(InputError, match=r"0\.4 of the weights are in layers without a joint"):
        make(0.39)
    assert make(0.45).stored <= 0.45 * stored_numbers(problem.dense)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.85])
def test_ranks_are_the_largest_within_the_share(problem, share):
    made = PrunableModel(svd_llm(problem)(share).model, problem.dense.family)
    for index, block in enumerate(made.blocks):
        for path in problem.dense.linear_paths(problem.dense.blocks[0]):
            layer = block.get_submodule(path)
            rank, inputs = layer.right.weight.shape
            outputs = len(layer.left.weight)
            allowed = share * inputs * outputs
            assert rank * (inputs + outputs) <= allowed < (rank + 1) * (inputs + outputs), index
            assert rank == rank_of(share, outputs, inputs)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "phi3", "qwen2"])
def test_full_rank_gives_the_same_outputs(problem_for, model_type):
    """Biases and weights stored the other way round included."""
    problem = problem_for(model_type)
    tokens = torch.arange(4, 36)[None]
    wanted = problem.dense.model(tokens).logits
    whitened, joint = copied(problem), copied(problem)
    for block, moments in zip(whitened.blocks, moments_of(problem, problem.dense), strict=True):
        for path in problem.dense.linear_paths(problem.dense.blocks[0]):
            weight = matrix_of(linear_at(block, path))
            factorise(block, path, whitened_basis(weight, moments[path]), share=2.0)
    for block in joint.blocks:
        for paths in groups_of(problem.dense.family):
            stacked = torch.cat([weight_of(block, path) for path in paths])
            basis = torch.linalg.svd(stacked, full_matrices=False)[2]
            factorise_jointly(block, paths, basis, share=2.0)
    for prunable in (whitened, joint):
        assert stored_numbers(prunable) > stored_numbers(problem.dense)
        got = prunable.model(tokens).logits
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("share", [0.4, 0.75])
def test_svd_llm_loses_the_dropped_singular_values(problem, share):
    """By the symmetric root of `X·Xᵀ` in place of Cholesky's; of the dense inputs in each block."""
    made = PrunableModel(svd_llm(problem)(share).model, problem.dense.family)
    for block, thin, moments in zip(
        problem.dense.blocks,
        made.blocks,
        moments_of(problem, problem.dense),
        strict=True,
    ):
        for path in problem.dense.linear_paths(problem.dense.blocks[0]):
            weight, moment = weight_of(block, path).double(), moments[path].double()
            rank = thin.get_submodule(path).right.out_features
            values, vectors = torch.linalg.eigh(moment)
            root = vectors * values.clamp(min=0).sqrt() @ vectors.T
            dropped = float(torch.linalg.svdvals(weight @ root)[rank:].square().sum())
            loss = error_of(weight - weight_of(thin, path), moment)
            whole = error_of(weight, moment)
            assert loss == pytest.approx(dropped, rel=1e-3, abs=1e-5 * whole), path
            assert loss < 0.98 * error_of(weight - truncated(weight, rank), moment), path


def test_whitening_stands_dependent_inputs():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for moment in (inputs @ inputs.T, torch.zeros(8, 8)):
        basis = whitened_basis(weight, moment)
        torch.testing.assert_close(basis.T @ basis, torch.eye(6), rtol=0, atol=1e-5)
    three = whitened_basis(weight, inputs @ inputs.T)[:, :3]  # all that the inputs ever show
    got = three @ (three.T @ weight) @ inputs
    torch.testing.assert_close(got, weight @ inputs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_joint_rank_k_is_the_svd_of_the_stack(problem, share):
    made = joint_rank_k(problem)(share)
    full, joint = stored_numbers(problem.dense), 0
    unit = 0
    pairs = (
        ("self_attn.q_proj", "self_attn.k_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    )
    for block, thin in zip(problem.dense.model.model.layers, made.model.model.layers, strict=True):
        for paths in pairs:
            stacked = torch.cat([weight_of(block, path) for path in paths])
            first, second = (thin.get_submodule(path) for path in paths)
            assert first.right is second.right
            rank = first.right.out_features
            got = torch.cat([weight_of(thin, path) for path in paths])
            torch.testing.assert_close(got.double(), truncated(stacked, rank), rtol=0, atol=1e-4)
            joint += stacked.numel()
            unit += sum(stacked.shape)
        for path in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"):
            assert torch.equal(weight_of(thin, path), weight_of(block, path))
    assert share * full - unit < made.stored <= share * full
    assert joint == 0.6 * full


def test_a_shared_factor_multiplies_once_and_never_answers_for_another_input(monkeypatch):
    factor = as_linear(torch.randn(3, 8), kind=SharedFactor)
    one, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    runs = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: runs.append(1) or forward(self, x))
    wanted = [x @ factor.weight.T for x in (one, other)]
    for inputs, result in ((one, 0), (one, 0), (other, 1), (one, 0), (other, 1), (other, 1)):
        torch.testing.assert_close(factor(inputs), wanted[result])
    assert len(runs) == 4
    assert factor.held is None


@pytest.mark.parametrize("width", [1, 16, 32, 49, 192, 576, 1536, 11008, 97])
def test_local_widths_multiply_to_the_width_and_peak_in_the_middle(width):
    widths = local_widths(width)
    assert len(widths) == 5
    assert math.prod(widths) == width
    assert max(widths) == widths[2]
    assert max(widths[0], widths[4]) <= min(widths[1], widths[3])


def test_a_folded_matrix_holds_the_pairs_side_by_side():
    shape = Shape((2, 3, 1, 2, 2), (3, 1, 2, 2, 2))
    matrix = torch.arange(24.0 * 24).view(24, 24)
    tensor = shape.fold(matrix)
    assert tensor.shape == (6, 3, 2, 4, 4)
    row, column = (1, 2, 0, 1, 0), (2, 0, 1, 0, 1)
    places = [i * n + j for i, j, n in zip(row, column, shape.columns, strict=True)]
    at_row = sum(i * math.prod(shape.rows[k + 1 :]) for k, i in enumerate(row))
    at_column = sum(j * math.prod(shape.columns[k + 1 :]) for k, j in enumerate(column))
    assert tensor[tuple(places)] == matrix[at_row, at_column]
    assert torch.equal(shape.unfold(tensor), matrix)


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (16, 32), (72, 96)])
def test_uncut_chains_are_the_weight(size):
    matrix = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    shape = shape_of(matrix)
    (chain,) = shared_chains([shape.fold(matrix)], shape.bonds(UNCUT))
    got = shape.unfold(chain.contracted())
    torch.testing.assert_close(got, matrix, rtol=0, atol=2e-5)
    assert chain.central.numel() >= 0.6 * matrix.numel()


@pytest.mark.parametrize("limit", [1, 2, 5, 9, UNCUT])
def test_numbers_are_those_of_the_tensors(limit):
    weights = torch.randn(2, 48, 36, generator=torch.Generator().manual_seed(0))
    shape = shape_of(weights[0])
    chains = shared_chains([shape.fold(w) for w in weights], shape.bonds(limit))
    assert chains[0].central is chains[1].central
    own, common = shape.numbers(limit)
    for chain in chains:
        auxiliary = (chain.first, chain.second, chain.fourth, chain.fifth)
        assert sum(tensor.numel() for tensor in auxiliary) == own
        assert chain.central.numel() == common
        assert max(tensor.shape[-1] for tensor in auxiliary) <= limit


def test_cut_chains_stay_within_the_bounds_of_successive_svds():
    """Not better than the best cut of the worst bond, not worse than all cuts added up."""
    matrix = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    matrix += 3 * torch.randn(48, 2) @ torch.randn(2, 32)
    shape = shape_of(matrix)
    tensor = shape.fold(matrix)
    for limit in (2, 4, 7):
        bonds = shape.bonds(limit)
        tails = [
            float(torch.linalg.svdvals(tensor.flatten(k).flatten(0, k - 1))[bond:].square().sum())
            for k, bond in enumerate(bonds, start=1)
        ]
        for sweeps in (0, 3):
            (chain,) = shared_chains([tensor], bonds, sweeps)
            error = float((tensor - chain.contracted()).square().sum())
            assert 0.999 * max(tails) <= error <= 1.001 * sum(tails), (limit, sweeps)


def test_every_sweep_fits_a_shared_central_tensor_better():
    weights = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(0))
    shape = shape_of(weights[0])
    tensors = [shape.fold(weight) for weight in weights]
    errors = []
    for sweeps in range(5):
        chains = shared_chains(tensors, shape.bonds(12), sweeps)
        pairs = zip(tensors, chains, strict=True)
        errors.append(float(sum((w - chain.contracted()).square().sum() for w, chain in pairs)))
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.99 * errors[1] < errors[0]


def test_weights_that_differ_by_auxiliary_tensors_alone_share_all():
    """What the auxiliary tensors are for: such blocks lose nothing with one central tensor."""
    generator = torch.Generator().manual_seed(0)
    shape = Shape((2, 2, 3, 2, 2), (2, 2, 2, 2, 1))
    one = torch.randn(shape.areas, generator=generator).flatten(3).flatten(0, 1)  # (16, 6, 8)
    rotations = []
    for side in (16, 8):
        skew = 0.05 * torch.randn(side, side, generator=generator)
        rotations.append(torch.matrix_exp(skew - skew.T))
    other = torch.einsum("amb,ax,by->xmy", one, *rotations)
    tensors = [w.reshape(shape.areas) for w in (one, other)]
    chains = shared_chains(tensors, shape.bonds(UNCUT), sweeps=300)
    for weight, chain in zip(tensors, chains, strict=True):
        assert (weight - chain.contracted()).norm() < 0.01 * weight.norm()
    assert (one - other).norm() > 0.2 * one.norm()


@pytest.mark.parametrize(("share", "groups"), [(0.3, 1), (0.6, 2), (0.9, 3)])
def test_neighbours_share_as_few_central_tensors_as_the_share_asks(problem, share, groups):
    """Auxiliary tensors have orthonormal columns, so that blocks of one central tensor have the
    same singular values on its two sides."""
    made = mpo(problem)(share)
    path = "mlp.up_proj"
    spectra = []
    for block in made.model.model.layers:
        weight = weight_of(block, path)
        tensor = shape_of(weight).fold(weight)
        spectra.append(torch.linalg.svdvals(tensor.flatten(2).flatten(0, 1)))
    same = [torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in itertools.pairwise(spectra)]
    assert same == {1: [True, True], 2: [True, False], 3: [False, False]}[groups]


@pytest.mark.parametrize("share", [0.2, 0.75])
def test_one_more_number_a_bond_would_exceed_the_share(problem, share):
    made = mpo(problem)(share)
    shapes = [
        shape_of(matrix_of(linear_at(problem.dense.model.model.layers[0], path)))
        for path in problem.dense.linear_paths(problem.dense.blocks[0])
    ]

    def stored(limit: int) -> int:
        pairs = [shape.numbers(limit) for shape in shapes]
        return sum(3 * own + math.ceil(3 * share) * common for own, common in pairs)

    allowed = share * stored_numbers(problem.dense)
    limit = max(d for d in range(1, 200) if stored(d) <= allowed)
    assert made.stored == stored(limit)
    assert stored(limit + 1) > allowed


def test_joint_basis_of_a_fused_layer_is_that_of_its_matrix():
    block = tiny_model("phi3").model.layers[0]
    basis = joint_basis(block, ("mlp.gate_up_proj",))
    weight = block.mlp.gate_up_proj.weight
    rank = len(basis)
    assert rank == rank_of(1.0, *weight.shape)
    torch.testing.assert_close(
        (weight @ basis.T @ basis).double(), truncated(weight, rank), rtol=0, atol=1e-4
    )
