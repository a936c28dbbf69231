"""What a plan changes of the weights -> the dense model itself, for as long as a context lasts.

So masked and exported model have the same weights.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.export.plan import Cut, plan_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks


@dataclass(frozen=True)
class Replaced:
    """A parameter that was taken out of its module."""

    module: Any
    name: str
    parameter: nn.Parameter | None
    device: torch.device

    def put_back(self) -> None:
        """Gives the module its own parameter again, on the device that it came from."""
        setattr(self.module, self.name, self.parameter)
        if self.parameter is not None:
            self.parameter.data = self.parameter.data.to(self.device)


@contextlib.contextmanager
def fold_into_weights(target: PrunableModel, masks: Masks) -> Iterator[None]:
    """While the context lasts, the blocks carry what the selection has beside its masks.

    A scale of attn_in or mlp_in multiplies the columns of all linear layers that read there, one of
    mlp_mid those of the layer that writes, one of attn_out or mlp_out its rows and bias, one of a
    whole branch or expert all of these rows. Adapters are added to the weights before. What pruned
    columns of a layer that writes would have added on average becomes its bias. Products are
    rounded to the model's dtype, so that what is then masked is what is then exported. On a GPU the
    original weights wait in the machine's memory.
    """
    replaced: list[Replaced] = []
    try:
        if masks.compensation:
            for part in plan_of(target, masks).cut:
                if part.changes:
                    _replace(target.model, part, replaced)
        yield
    finally:
        for one in replaced:
            one.put_back()


def _replace(model: nn.Module, part: Cut, replaced: list[Replaced]) -> None:
    """Gives a module a new parameter; on a GPU the old one moves to the CPU."""

    def read(name: str) -> Tensor:
        return model.get_parameter(name).detach()

    new = part.changed(read)
    path, _, name = part.source.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, name)
    replaced.append(Replaced(module, name, old, new.device))
    setattr(module, name, nn.Parameter(new, requires_grad=False))
    if old is not None:
        old.data = old.data.cpu()
