"""Low-rank adapters (LoRA, arXiv 2106.09685) that learn beside the masks, on every block linear.

A linear layer W with an adapter computes `W·x + B·(A·x)` on its masked and scaled input, so that at
export `W + B·A` takes the place of W. One pair of matrices serves every size: what is pruned at a
size is cut from the sum as it is from W.

R rank, I inputs and O outputs of a linear layer.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.masks.narrowing import computed_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter
from disp_llm.models.hooks import hooks


class Adapters(nn.Module):
    """A and B of every linear layer of the blocks, in the order of `PrunableModel.linears`."""

    def __init__(self, pairs: Iterable[Adapter]):
        super().__init__()
        pairs = list(pairs)
        self.down = nn.ParameterList(pair.down for pair in pairs)  # A, (R, I)
        self.up = nn.ParameterList(pair.up for pair in pairs)  # B, (O, R)

    @classmethod
    def begun(cls, target: PrunableModel, rank: int, noise: torch.Generator) -> "Adapters":
        """A at random, with rows of length 1 on average, and B at zero: training begins with the
        model as it is."""
        widths = [widths_of(linear) for linear in target.linears()]
        return cls(
            Adapter(torch.randn(rank, i, generator=noise) / math.sqrt(i), torch.zeros(o, rank))
            for i, o in widths
        )

    def pairs(self) -> tuple[Adapter, ...]:
        """What has been learned, apart from any gradient."""
        pairs = zip(self.down, self.up, strict=True)
        return tuple(Adapter(a.detach().clone(), b.detach().clone()) for a, b in pairs)


DOWN, UP = "disp_adapter_down", "disp_adapter_up"


class Adapting:
    """The adapters that a model wrapped by `adapted` currently runs with; set them before a
    forward."""

    def __init__(self, adapters: Adapters, linears: list[nn.Module], dtype: torch.dtype):
        self._adapters, self._linears, self._dtype = adapters, linears, dtype

    def set(self) -> None:
        """Takes the adapters as they are now, in the data type of the model, and of a layer that is
        narrowed by its masks no more of them than it computes."""
        pairs = zip(self._linears, self._adapters.down, self._adapters.up, strict=True)
        for linear, down, up in pairs:
            columns, rows = computed_of(linear)
            down = down if columns is None else down[:, columns]
            up = up if rows is None else up[rows]
            _lay(linear, down.to(self._dtype), up.to(self._dtype))

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """While the context lasts, the model runs without adapters."""
        before = [(getattr(one, DOWN), getattr(one, UP)) for one in self._linears]
        for linear in self._linears:
            _lay(linear, None, None)
        try:
            yield
        finally:
            for linear, (down, up) in zip(self._linears, before, strict=True):
                _lay(linear, down, up)


def _lay(linear: nn.Module, down: Tensor | None, up: Tensor | None) -> None:
    """Lays an adapter on its layer, past `nn.Module`, which would take it for a weight."""
    linear.__dict__[DOWN], linear.__dict__[UP] = down, up


@contextlib.contextmanager
def adapted(target: PrunableModel, adapters: Adapters) -> Iterator[Adapting]:
    """While the context lasts, every linear layer of the blocks adds its adapter's output."""
    linears = list(target.linears())
    adapting = Adapting(adapters, linears, target.dtype)
    adapting.set()
    try:
        with hooks(one.register_forward_hook(_add, prepend=True) for one in linears):
            yield adapting
    finally:
        for linear in linears:
            for name in (DOWN, UP):
                linear.__dict__.pop(name, None)


def _add(module: Any, args: tuple, output: Tensor) -> Tensor:
    """Forward hook: W·x -> W·x + B·(A·x)."""
    down = module.disp_adapter_down
    if down is None:
        return output
    inside = nn.functional.linear(args[0], down)
    return output + nn.functional.linear(inside, module.disp_adapter_up)
