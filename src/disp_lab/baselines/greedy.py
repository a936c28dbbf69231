"""Greedy Output Approximation (arXiv 2407.19126): prunes branches to change their output least.

Both criteria treat a branch as a module of depth two and look at its output alone:

- an intermediate channel scores the second moment of what it adds, `E[h_j²]·‖W_j‖²`;
- KV heads are pruned one by one, each time the head without which the attention's output remains
  most similar (cosine) to that of all heads.

The kept weights make up for the pruned ones by least squares, `W' = W·Σ[:, S]·Σ[S, S]⁻¹`, with Σ
the second moments of the writing layer's inputs. The attention is solved first, then the MLP behind
it; later blocks see the result. Every block keeps the same numbers of heads and channels.

N entries of all sites, S kept of K inputs of a layer, D residual stream, H KV heads.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from disp_lab.parts.activations import visit_blocks
from disp_lab.parts.baseline import Baseline, Maker, models_of
from disp_lab.parts.coupled import flat_of, sizes_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments
from disp_llm.methods.compensating import DAMPING, damped
from disp_llm.models.architectures import Branch
from disp_llm.training.problem import PruningProblem


def greedy(problem: PruningProblem) -> Maker:
    """Makes compact models of any share; each size runs the calibration text through the model."""
    return models_of(problem, solve_blocks)


def solve_blocks(
    problem: PruningProblem, pruned: PrunableModel, layout: Layout, share: float
) -> Float[Tensor, " N"]:
    """Prunes every block of a copy of the dense model and solves its kept weights, in place.
    Returns 1 for each kept entry, on the CPU."""
    sizes = [sizes_of(shape, share) for shape in layout.blocks]
    channels: list[Tensor] = []
    heads: list[Tensor] = []

    def prune_heads(index: int, block: nn.Module, moments: SecondMoments) -> None:
        attention, _ = pruned.branches_of(block)
        shape, moment = layout.blocks[index], moments[attention.writes].double()
        weight = matrix_of(linear_at(block, attention.writes)).double()
        kept = most_similar(weight, moment, shape.heads, sizes[index].heads)
        heads.append(kept.float())
        _reconstruct(block, attention, moment, kept.repeat_interleave(shape.q // shape.heads))

    def prune_channels(index: int, block: nn.Module, moments: SecondMoments) -> None:
        _, mlp = pruned.branches_of(block)
        moment = moments[mlp.writes].double()
        weight = matrix_of(linear_at(block, mlp.writes)).double()
        added = moment.diagonal() * weight.square().sum(0)
        kept = torch.zeros_like(added, dtype=torch.bool)
        kept[added.topk(sizes[index].channels).indices] = True
        channels.append(kept.float())
        _reconstruct(block, mlp, moment, kept)

    visit_blocks(problem, pruned, prune_heads, prune_channels)
    return flat_of(layout, channels, heads).cpu()


def most_similar(
    weight: Float[Tensor, "D K"], moment: Float[Tensor, "K K"], heads: int, count: int
) -> Bool[Tensor, " H"]:
    """Returns which `count` heads stay when heads are pruned one by one, each time the head without
    which `E[⟨y, y_S⟩]/√(E‖y‖²·E‖y_S‖²)` is largest."""
    pairs = (weight.T @ weight) * moment  # (K, K), summed over heads: E⟨y_g, y_h⟩
    each = len(moment) // heads
    gram = pairs.view(heads, each, heads, each).sum((1, 3))
    kept = torch.ones(heads, dtype=torch.bool, device=weight.device)
    for _ in range(heads - count):
        best, place = -torch.inf, 0
        for head in kept.nonzero().flatten().tolist():
            rest = kept.clone()
            rest[head] = False
            alike = gram[:, rest].sum() / gram[rest][:, rest].sum().clamp(min=1e-30).sqrt()
            if float(alike) > best:
                best, place = float(alike), head
        kept[place] = False
    return kept


def _reconstruct(
    block: nn.Module, branch: Branch, moment: Float[Tensor, "K K"], kept: Bool[Tensor, " K"]
) -> None:
    """Solves the kept columns of the writing layer for its full output, and zeroes the others."""
    matrix = matrix_of(linear_at(block, branch.writes))
    solved = least_squares(matrix.double(), moment, kept)
    matrix.zero_()
    matrix[:, kept] = solved.to(matrix.dtype)


def least_squares(
    weight: Float[Tensor, "R K"], moment: Float[Tensor, "K K"], kept: Bool[Tensor, " K"]
) -> Float[Tensor, "R S"]:
    """Returns `argmin E‖W·x − W'·x_S‖²` in float64, damped."""
    held = damped(moment, DAMPING)
    return torch.linalg.solve(held[kept][:, kept], held[kept] @ weight.double().T).T


BASELINE = Baseline(
    name="greedy",
    title="Greedy Output Approximation",
    reference="Li et al., Greedy Output Approximation: Towards Efficient Structured Pruning for "
    "LLMs Without Retraining (arXiv 2407.19126)",
    prepare=greedy,
)
