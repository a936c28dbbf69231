"""Inputs of layers over the calibration text: seen by hooks, as moments, and block by block.

B windows, T tokens of a window, K inputs of a layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import Visit, visit_with
from disp_llm.models.hooks import hooks
from disp_llm.training.problem import PruningProblem, calibration_windows


@dataclass(frozen=True)
class Moments:
    """Moments of one layer's inputs over all calibration tokens, in float64."""

    mean: Float[Tensor, " K"]
    square: Float[Tensor, " K"]
    """Mean of the square."""

    @property
    def variance(self) -> Float[Tensor, " K"]:
        """Variance of each input."""
        return (self.square - self.mean.square()).clamp(min=0)


@torch.no_grad()
def read_calibration(problem: PruningProblem) -> Int[Tensor, "B T"]:
    """Runs the original over the calibration text, for hooks to see, and returns the windows."""
    windows, dense = calibration_windows(problem).tokens, problem.dense
    progress = problem.job.count("scoring")
    for done, window in enumerate(windows.to(dense.device), start=1):
        dense.base(input_ids=window[None], use_cache=False)
        progress(done, len(windows))
    return windows


@torch.no_grad()
def input_moments(problem: PruningProblem) -> list[tuple[Moments, Moments]]:
    """Returns, for each block, the moments of the inputs of the two layers that write to the
    residual stream: the attention's and the MLP's."""
    dense = problem.dense
    layers = [
        linear_at(block, branch.writes)
        for block in dense.blocks
        for branch in dense.branches_of(block)
    ]
    sums: list[Tensor] = [torch.zeros(())] * len(layers)

    def add_to(place: int) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            inputs = args[0].flatten(0, -2).double()  # (T, K)
            total = torch.stack([inputs.sum(0), inputs.square().sum(0)])  # (2, K)
            sums[place] = sums[place].to(total.device) + total

        return hook

    with hooks(layer.register_forward_pre_hook(add_to(i)) for i, layer in enumerate(layers)):
        windows = read_calibration(problem)
    moments = [Moments(*(total / windows.numel())) for total in sums]
    return list(zip(moments[::2], moments[1::2], strict=True))


def visit_blocks(
    problem: PruningProblem, prunable: PrunableModel, *visits: Visit, changes: bool = True
) -> None:
    """Visits every block of the dense model, or of a copy that the visits change, with the second
    moments of its linear layers' inputs over the calibration text (`visit_with`)."""
    windows = calibration_windows(problem).tokens
    visit_with(windows, prunable, *visits, progress=problem.job.count("scoring"), changes=changes)
