"""Greedy Output Approximation: Li et al., Towards Efficient Structured Pruning for LLMs Without
Retraining (arXiv 2407.19126).

A branch is a module of depth two whose output is to be kept, whatever happens inside. Both criteria
look at that output alone:

- an intermediate channel counts by the second moment of what it adds, `E[h_j²]·‖W_j‖²`;
- KV heads go one by one, each time the one without which the attention's output stays most similar
  (cosine) to the whole one.

The weights that are left make up for those that went by least squares, `W' = W·Σ[:, S]·Σ[S, S]⁻¹`
with Σ the second moments of the inputs of the layer that writes: first the attention's, then, with
it in place, the MLP's; later blocks see the result. Every block keeps the same numbers of heads and
channels.

S kept of K inputs of a layer, D residual stream, H KV heads.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.export import compact_model
from disp_llm.families import Branch
from disp_llm.learn import Task
from disp_llm.masks import Choice, Masks, layout_of
from disp_llm.methods.context import Context
from disp_llm.methods.coupled import flat_of, sizes_of
from disp_llm.methods.walk import walk
from disp_llm.rewrites.rewrite import Maker, Rewritten, as_stored, copied, damped

DAMPING = 0.01
"""Of the mean second moment, added to all."""


def greedy(task: Task, context: Context) -> Maker:
    """Compact models of any share; each size takes a walk over the calibration text."""

    def make(share: float) -> Rewritten:
        layout = layout_of(task.model, task.family, heads=True)
        sizes = [sizes_of(shape, share) for shape in layout.blocks]
        model = copied(task)
        channels: list[Tensor] = []
        heads: list[Tensor] = []

        def attention(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
            branch, shape = task.family.attention, layout.blocks[index]
            moment = moments[branch.writes].double()
            weight = matrix_of(linear_at(block, branch.writes)).double()
            stays = most_similar(weight, moment, shape.heads, sizes[index].heads)
            heads.append(stays.float())
            _reconstruct(block, branch, moment, stays.repeat_interleave(shape.q // shape.heads))

        def mlp(index: int, block: nn.Module, moments: dict[str, Tensor]) -> None:
            branch = task.family.mlp
            moment = moments[branch.writes].double()
            weight = matrix_of(linear_at(block, branch.writes)).double()
            adds = moment.diagonal() * weight.square().sum(0)
            stays = torch.zeros_like(adds, dtype=torch.bool)
            stays[adds.topk(sizes[index].channels).indices] = True
            channels.append(stays.float())
            _reconstruct(block, branch, moment, stays)

        walk(model, task, context, attention, mlp)
        flat = flat_of(layout, channels, heads).cpu()
        compact = compact_model(model, task.family, Masks(layout, flat.bool(), Choice(flat)))
        return as_stored(compact, task.family)

    return make


def most_similar(
    weight: Float[Tensor, "D K"], moment: Float[Tensor, "K K"], heads: int, left: int
) -> Bool[Tensor, " H"]:
    """Drops head after head, the one without which `E[⟨y, y_S⟩]/√(E‖y‖²·E‖y_S‖²)` is largest."""
    pairs = (weight.T @ weight) * moment  # (K, K), summed over heads: E⟨y_g, y_h⟩
    each = len(moment) // heads
    gram = pairs.view(heads, each, heads, each).sum((1, 3))
    stays = torch.ones(heads, dtype=torch.bool, device=weight.device)
    for _ in range(heads - left):
        best, place = -torch.inf, 0
        for head in stays.nonzero().flatten().tolist():
            rest = stays.clone()
            rest[head] = False
            alike = gram[:, rest].sum() / gram[rest][:, rest].sum().clamp(min=1e-30).sqrt()
            if float(alike) > best:
                best, place = float(alike), head
        stays[place] = False
    return stays


def _reconstruct(
    block: nn.Module, branch: Branch, moment: Float[Tensor, "K K"], stays: Bool[Tensor, " K"]
) -> None:
    """Solves the writing layer's kept columns for its whole output, and empties the others."""
    matrix = matrix_of(linear_at(block, branch.writes))
    solved = least_squares(matrix.double(), moment, stays)
    matrix.zero_()
    matrix[:, stays] = solved.to(matrix.dtype)


def least_squares(
    weight: Float[Tensor, "D K"], moment: Float[Tensor, "K K"], stays: Bool[Tensor, " K"]
) -> Float[Tensor, "D S"]:
    """`argmin E‖W·x − W'·x_S‖²`, damped."""
    whole = damped(moment, DAMPING)
    return torch.linalg.solve(whole[stays][:, stays], whole[stays] @ weight.T).T
