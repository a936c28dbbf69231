"""What learns beside the masks on every linear layer of the blocks: low-rank adapters (LoRA, arXiv
2106.09685) and, where that is asked for, the weight itself.

A linear layer W with an adapter computes `W·x + B·(A·x)` on its masked and scaled input, so that at
export `W + B·A` takes the place of W; where weights learn, it computes with `W + C` for W, and C is
added at export too. One A, B and C serve every size: what is pruned at a size is cut from the sum
as it is from W.

R rank, I inputs and O outputs of a linear layer.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import is_conv1d, widths_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter
from disp_llm.models.hooks import hooks


class Adapters(nn.Module):
    """A, B and, where weights learn, C of every linear layer of the blocks, in the order of
    `PrunableModel.linears`."""

    def __init__(self, pairs: Iterable[Adapter]):
        super().__init__()
        pairs = list(pairs)
        self.down = nn.ParameterList(pair.down for pair in pairs)  # A, (R, I)
        self.up = nn.ParameterList(pair.up for pair in pairs)  # B, (O, R)
        self.whole = nn.ParameterList(pair.whole for pair in pairs if pair.whole is not None)  # C
        for matrix in self.parameters():
            matrix.requires_grad_(matrix.numel() > 0)  # of rank 0 there is nothing to learn

    @classmethod
    def begun(
        cls, target: PrunableModel, rank: int, noise: torch.Generator, weights: bool = False
    ) -> "Adapters":
        """A at random, with rows of length 1 on average, B and C at zero: training begins with the
        model as it is.

        Args:
            weights: whether there is a C.
        """
        return cls(
            Adapter(
                torch.randn(rank, i, generator=noise) / math.sqrt(i),
                torch.zeros(o, rank),
                torch.zeros(o, i) if weights else None,
            )
            for i, o in (widths_of(linear) for linear in target.linears())
        )

    @property
    def wholes(self) -> "list[Tensor | None]":
        """C of every layer, or None for each."""
        return list(self.whole) if len(self.whole) else [None] * len(self.down)

    def learned(self) -> tuple[Adapter, ...]:
        """What has been learned, apart from any gradient."""
        layers = zip(self.down, self.up, self.wholes, strict=True)
        return tuple(Adapter(*layer).each(lambda t: t.detach().clone()) for layer in layers)


DOWN, UP, WEIGHT = "disp_adapter_down", "disp_adapter_up", "weight"


class Adapting:
    """The adapters that a model wrapped by `adapted` currently runs with; set them before a
    forward."""

    def __init__(self, adapters: Adapters, linears: list[nn.Module], dtype: torch.dtype):
        self._adapters, self._linears, self._dtype = adapters, linears, dtype
        self.names = (DOWN, UP, WEIGHT) if len(adapters.whole) else (DOWN, UP)
        """Attributes that are laid on every layer; masks lay a weight of their own."""

    def set(self) -> None:
        """Takes the adapters as they are now, in the data type of the model."""
        own = self._adapters
        for linear, down, up, whole in zip(
            self._linears, own.down, own.up, own.wholes, strict=True
        ):
            laid: dict[str, Any] = dict.fromkeys((DOWN, UP))
            if len(down):
                laid = {DOWN: down.to(self._dtype), UP: up.to(self._dtype)}
            if whole is not None:
                weight, turned = linear._parameters["weight"], is_conv1d(linear)
                assert weight is not None
                changed = weight.float() + (whole.T if turned else whole)
                laid[WEIGHT] = changed.to(self._dtype)
            # Past `nn.Module`, which would take them for parameters of its own.
            linear.__dict__.update(laid)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """While the context lasts, the model runs without adapters, and with weights as its masks
        leave them: these are lifted inside, if at all."""
        before = [{name: one.__dict__.pop(name) for name in self.names} for one in self._linears]
        for linear in self._linears:
            linear.__dict__.update(dict.fromkeys((DOWN, UP)))
        try:
            yield
        finally:
            for linear, laid in zip(self._linears, before, strict=True):
                linear.__dict__.update(laid)


@contextlib.contextmanager
def adapted(target: PrunableModel, adapters: Adapters) -> Iterator[Adapting]:
    """While the context lasts, every linear layer of the blocks adds its adapter's output and, of
    weights that learn, has what was learned in place of its own.

    Raises:
        InputError: weights learn that do not lie here as a whole.
    """
    linears = list(target.linears())
    if len(adapters.whole) and not target.is_whole:
        raise InputError(
            "cannot learn weights that are divided, quantised or read as they are needed",
            field="weight_rate",
            hint="let it be 0, and train the exported folder with `disp-llm recover`",
        )
    adapting = Adapting(adapters, linears, target.dtype)
    try:
        adapting.set()
        with hooks(one.register_forward_hook(_add, prepend=True) for one in linears):
            yield adapting
    finally:
        for linear in linears:
            for name in adapting.names:
                linear.__dict__.pop(name, None)


def _add(module: Any, args: tuple, output: Tensor) -> Tensor:
    """Forward hook: W·x -> W·x + B·(A·x)."""
    down = module.disp_adapter_down
    if down is None:
        return output
    inside = nn.functional.linear(args[0], down)
    return output + nn.functional.linear(inside, module.disp_adapter_up)
