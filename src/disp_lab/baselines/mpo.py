"""MPO (arXiv 2303.16753): matrix product operators whose large central tensors blocks share.

A weight of `Π i_k` by `Π j_k` numbers becomes a chain of five local tensors `T_k` (d_{k-1}, i_k,
j_k, d_k), found by successive SVDs. An uncut bond is `d_k = min(Π_{m≤k} i_m·j_m, Π_{m>k} i_m·j_m)`.
The central tensor T_3 holds nearly all numbers. Blocks share it between layers of one kind, and
every block keeps its own four auxiliary tensors.

The paper shares one central tensor among all blocks, and trains. Here the blocks get as many
central tensors as the share has room for, ⌈share · blocks⌉, each shared by neighbours. Then all
bonds are cut to the largest common limit at which all tensors fit the share. Instead of training,
least squares fits each group's central tensor and the auxiliary tensors beside it in turn. The
model runs with the contracted, dense weights.

a_k = i_k·j_k, D_k bonds, L blocks; inside the outermost tensors A = D_1·a_2, M = a_3, B = a_4·D_4.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from disp_lab.parts.baseline import (
    Baseline,
    BaselineModel,
    Maker,
    copied,
    require_one_kind,
    stored_numbers,
)
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.training.problem import PruningProblem

SWEEPS = 3
"""How often the auxiliary tensors beside the central one are fitted, and then the central one."""


@dataclass(frozen=True)
class Shape:
    """How a matrix is split into five local tensors."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def areas(self) -> tuple[int, ...]:
        """a_1 to a_5."""
        return tuple(i * j for i, j in zip(self.rows, self.columns, strict=True))

    def bonds(self, limit: int) -> tuple[int, ...]:
        """Returns D_1 to D_4, none above the limit."""
        sides = [(math.prod(self.areas[:k]), math.prod(self.areas[k:])) for k in range(1, 5)]
        return tuple(min(limit, *pair) for pair in sides)

    def numbers(self, limit: int) -> tuple[int, int]:
        """Counts the numbers of the four auxiliary tensors together, and of the central one."""
        bonds = (1, *self.bonds(limit), 1)
        first, second, central, fourth, fifth = (
            bonds[k] * area * bonds[k + 1] for k, area in enumerate(self.areas)
        )
        return first + second + fourth + fifth, central

    def fold(self, matrix: Float[Tensor, "O I"]) -> Float[Tensor, "a1 a2 a3 a4 a5"]:
        """Reshapes a matrix so that dimension k pairs part k of its rows and columns."""
        pairs = matrix.reshape(*self.rows, *self.columns).permute(0, 5, 1, 6, 2, 7, 3, 8, 4, 9)
        return pairs.reshape(self.areas)

    def unfold(self, tensor: Float[Tensor, "a1 a2 a3 a4 a5"]) -> Float[Tensor, "O I"]:
        """Undoes `fold`."""
        pairs = [length for pair in zip(self.rows, self.columns, strict=True) for length in pair]
        matrix = tensor.reshape(pairs).permute(0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
        return matrix.reshape(math.prod(self.rows), math.prod(self.columns))


@dataclass
class Chain:
    """The local tensors of one weight; the auxiliary ones have orthonormal columns."""

    first: Float[Tensor, "a1 D1"]
    second: Float[Tensor, "A D2"]
    central: Float[Tensor, "D2 M D3"]
    fourth: Float[Tensor, "B D3"]
    fifth: Float[Tensor, "a5 D4"]

    def contracted(self) -> Float[Tensor, "a1 a2 a3 a4 a5"]:
        """Multiplies the tensors out to the folded weight."""
        inner = torch.tensordot(self.second, self.central, 1) @ self.fourth.T  # (A, M, B)
        left, right = self.first.shape[1], self.fifth.shape[1]
        inner = inner.view(left, -1, inner.shape[1], inner.shape[2] // right, right)
        return torch.tensordot(self.first, inner, 1) @ self.fifth.T


def mpo(problem: PruningProblem) -> Maker:
    """Factorises every linear layer; a share of 1 changes nothing. Needs no text."""
    dense = problem.dense
    require_one_kind(problem)
    count, first = len(dense.blocks), dense.blocks[0]
    paths = dense.linear_paths(first)
    shapes = {path: shape_of(matrix_of(linear_at(first, path))) for path in paths}
    all_numbers = stored_numbers(dense)
    largest = max(max(shape.bonds(all_numbers)) for shape in shapes.values())

    def make(share: float) -> BaselineModel:
        made = copied(problem)
        if share == 1:
            return BaselineModel(made.model, all_numbers, all_numbers)
        groups = math.ceil(share * count)

        def stored(limit: int) -> int:
            numbers = [shape.numbers(limit) for shape in shapes.values()]
            return sum(count * own + groups * common for own, common in numbers)

        limit = bisect_right(range(1, largest + 1), share * all_numbers, key=stored)
        if not limit:
            raise InputError(
                f"{share} is less than the smallest chains, {stored(1) / all_numbers:.2g}",
                field="keep",
                hint="ask for more",
            )
        for path, shape in shapes.items():
            matrices = [matrix_of(linear_at(block, path)) for block in made.blocks]
            for group in torch.arange(count).tensor_split(groups):
                _share([matrices[index] for index in group.tolist()], shape, limit)
        return BaselineModel(made.model, stored(limit), all_numbers)

    return make


def shape_of(matrix: Float[Tensor, "O I"]) -> Shape:
    """Returns the local widths of rows and columns."""
    rows, columns = matrix.shape
    return Shape(local_widths(rows), local_widths(columns))


def local_widths(width: int) -> tuple[int, ...]:
    """Splits a width into five factors, as equal as its primes allow, the largest in the middle."""
    factors, prime = [], 2
    while width > 1:
        while width % prime:
            prime += 1
        factors.append(prime)
        width //= prime
    widths = [1] * 5
    for prime in reversed(factors):
        widths[widths.index(min(widths))] *= prime
    widths.sort()
    return widths[0], widths[2], widths[4], widths[3], widths[1]


def _share(matrices: list[Tensor], shape: Shape, limit: int) -> None:
    """Rewrites the weights of a group of blocks in place."""
    chains = shared_chains([shape.fold(m.float()) for m in matrices], shape.bonds(limit))
    for matrix, chain in zip(matrices, chains, strict=True):
        matrix.copy_(shape.unfold(chain.contracted()))


def shared_chains(
    weights: list[Float[Tensor, "a1 a2 a3 a4 a5"]], bonds: tuple[int, ...], sweeps: int = SWEEPS
) -> list[Chain]:
    """Returns chains with one central tensor. Their error `Σ ‖W − chain‖²` falls with every sweep;
    it is rounding alone for one weight with uncut bonds."""
    chains, inners = [], []
    for weight in weights:
        first = _leading(weight.flatten(1), bonds[0])
        fifth = _leading(weight.flatten(0, 3).T, bonds[3])
        inner = torch.tensordot(first.T, weight, 1) @ fifth
        inner = inner.flatten(3).flatten(0, 1)  # (A, M, B)
        second = _leading(inner.flatten(1), bonds[1])
        fourth = _leading(inner.flatten(0, 1).T, bonds[2])
        central = torch.tensordot(second.T, inner @ fourth, 1)
        chains.append(Chain(first, second, central, fourth, fifth))
        inners.append(inner)
    central = chains[0].central
    for _ in range(sweeps):
        cores = []
        for chain, inner in zip(chains, inners, strict=True):
            left = torch.tensordot(chain.second.T, inner, 1)  # (D2, M, B)
            chain.fourth = _orthonormal(left.flatten(0, 1).T @ central.flatten(0, 1))
            right = inner @ chain.fourth  # (A, M, D3)
            chain.second = _orthonormal(right.flatten(1) @ central.flatten(1).T)
            cores.append(torch.tensordot(chain.second.T, right, 1))
        central = torch.stack(cores).mean(0)
    for chain in chains:
        chain.central = central
    return chains


def _leading(matrix: Float[Tensor, "R C"], count: int) -> Float[Tensor, "R count"]:
    """Returns the leading left singular vectors, by the eigenvectors of the smaller Gram matrix."""
    wide = matrix.double()
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    return vectors[:, -count:].flip(1).to(matrix.dtype)


def _orthonormal(matrix: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """Returns the Q with orthonormal columns that maximises `tr(Qᵀ·matrix)` (Procrustes)."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


BASELINE = Baseline(
    name="mpo",
    title="MPO",
    reference="Liu et al., Scaling Pre-trained Language Models to Deeper via Parameter-efficient "
    "Architecture (arXiv 2303.16753)",
    prepare=mpo,
    reads_text=False,
    not_smaller="its tensors run multiplied out, as matrices of the original's size",
)
