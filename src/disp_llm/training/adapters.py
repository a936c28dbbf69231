"""Low-rank adapters (LoRA, arXiv 2106.09685) and optional full-rank deltas, learned beside the
masks on every linear layer of the blocks.

A linear layer W computes `(W + Δ)·x + s·B·(A·x)` on its masked and scaled input; export replaces W
by `W + Δ + s·B·A`. One A, B and Δ serve every size: pruning cuts their sum exactly as it cuts W.

R rank, I inputs and O outputs of a linear layer.
"""

import contextlib
import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import is_conv1d, widths_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter
from disp_llm.models.hooks import hooks
from disp_llm.training.checkpoints import unsharded

GAIN = 4.716
"""By how much a linear layer of SmolLM2-135M, for which the step sizes were found, typically
multiplies a random input: see `step_scale`."""


class Adapters(nn.Module):
    """A and B of every linear layer, and Δ if weights learn, in the order of
    `PrunableModel.linears`; s for all of them."""

    def __init__(self, pairs: Iterable[Adapter], scale: float = 1.0):
        super().__init__()
        self.scale = scale
        pairs = list(pairs)
        self.down = nn.ParameterList(pair.down for pair in pairs)  # A, (R, I)
        self.up = nn.ParameterList(pair.up for pair in pairs)  # B, (O, R)
        self.delta = nn.ParameterList(pair.delta for pair in pairs if pair.delta is not None)
        for matrix in self.parameters():
            matrix.requires_grad_(matrix.numel() > 0)  # at rank 0 nothing is learned

    @classmethod
    def begun(
        cls, target: PrunableModel, rank: int, noise: torch.Generator, weights: bool = False
    ) -> "Adapters":
        """Initialises A at random with rows of mean length 1, and B and (if `weights`) Δ at zero,
        so that training starts from the unchanged model. s grows with the model's weights: one step
        changes those of every model by the same share."""
        pairs = (
            Adapter(
                torch.randn(rank, i, generator=noise) / math.sqrt(i),
                torch.zeros(o, rank),
                torch.zeros(o, i) if weights else None,
            )
            for i, o in (widths_of(linear) for linear in target.linears())
        )
        return cls(pairs, step_scale(target))

    def layers(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yields A, s·B and Δ of every layer; Δ is None if weights do not learn."""
        deltas = list(self.delta) if len(self.delta) else [None] * len(self.down)
        return zip(self.down, (self.scale * up for up in self.up), deltas, strict=True)

    def learned(self) -> tuple[Adapter, ...]:
        """Returns detached copies of what was learned."""
        return tuple(Adapter(*layer).each(lambda t: t.detach().clone()) for layer in self.layers())


def step_scale(target: PrunableModel) -> float:
    """Returns the size of the blocks' weights as a multiple of SmolLM2-135M's. A step that is so
    many times as large changes the weights of every model by the same share.

    The size is the median over layers of the weights' root mean square, times the root of the
    number of inputs: by so much a layer multiplies a random input.
    """
    found = []
    for linear in target.linears():
        square = unsharded(linear.weight.detach().float().square().mean())
        found.append(math.sqrt(float(square) * widths_of(linear)[0]))
    return statistics.median(found) / GAIN


DOWN, UP, WEIGHT = "disp_adapter_down", "disp_adapter_up", "weight"


class Adapting:
    """The adapters that a model wrapped by `adapted` currently runs with; set them before a forward
    pass."""

    def __init__(self, adapters: Adapters, linears: list[nn.Module], dtype: torch.dtype):
        self._adapters, self._linears, self._dtype = adapters, linears, dtype
        self.names = (DOWN, UP, WEIGHT) if len(adapters.delta) else (DOWN, UP)
        """Attributes set on every layer; WEIGHT only if weights learn."""

    def set(self) -> None:
        """Installs the adapters' current values, in the model's data type."""
        for linear, (down, up, delta) in zip(self._linears, self._adapters.layers(), strict=True):
            laid: dict[str, Any] = dict.fromkeys((DOWN, UP))
            if len(down):
                laid = {DOWN: down.to(self._dtype), UP: up.to(self._dtype)}
            if delta is not None:
                weight, turned = linear._parameters["weight"], is_conv1d(linear)
                assert weight is not None
                changed = weight.float() + (delta.T if turned else delta)
                laid[WEIGHT] = changed.to(self._dtype)
            # Bypasses `nn.Module`, which would register them as parameters of the layer.
            linear.__dict__.update(laid)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Runs the model without adapters and deltas within the context; masks stay."""
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
    """Runs every linear layer of the blocks with its adapter and delta within the context.

    Raises:
        InputError: weights should learn, but this process does not hold them whole.
    """
    linears = list(target.linears())
    if len(adapters.delta) and not target.is_whole:
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
    """Forward hook: W·x -> W·x + s·B·(A·x)."""
    down = module.disp_adapter_down
    if down is None:
        return output
    inside = nn.functional.linear(args[0], down)
    return output + nn.functional.linear(inside, module.disp_adapter_up)
