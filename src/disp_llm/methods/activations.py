"""What enters the layers that write to the residual stream: its moments over calibration text.

B windows, T tokens of a window, Q inputs of the attention's write, F width inside the MLP.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.learn import Task
from disp_llm.masks import blocks_of
from disp_llm.methods.context import Context, calibration_windows


@dataclass(frozen=True)
class Moments:
    """Of one layer's inputs over all calibration tokens, in float64."""

    mean: Float[Tensor, " K"]
    square: Float[Tensor, " K"]
    """Mean of the square."""

    @property
    def variance(self) -> Float[Tensor, " K"]:
        return (self.square - self.mean.square()).clamp(min=0)


@torch.no_grad()
def input_moments(task: Task, context: Context) -> list[tuple[Moments, Moments]]:
    """For every block, moments of what enters the attention's write (Q) and the MLP's (F)."""
    windows = calibration_windows(task, context.scores)
    device = next(task.model.parameters()).device
    branches = (task.family.attention, task.family.mlp)
    layers = [
        linear_at(block, branch.writes)
        for block in blocks_of(task.model, task.family)
        for branch in branches
    ]
    with _summing(layers) as sums:
        for done, window in enumerate(windows, start=1):
            task.model.base_model(input_ids=window[None].to(device), use_cache=False)
            context.on_sequence(done, len(windows))
    moments = [Moments(*(total / windows.numel())) for total in sums]
    return list(zip(moments[::2], moments[1::2], strict=True))


@contextmanager
def _summing(layers: list[Any]) -> Iterator[list[Tensor]]:
    """While the context lasts, each layer's inputs and their squares are summed up, (2, K)."""
    sums: list[Tensor] = [torch.zeros(())] * len(layers)

    def watch(place: int):
        def hook(module: nn.Module, args: tuple) -> None:
            inputs = args[0].flatten(0, -2).double()
            total = torch.stack([inputs.sum(0), inputs.square().sum(0)])
            sums[place] = sums[place].to(total.device) + total

        return hook

    handles = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
