"""Weights of one size of a run -> a smaller size of it, wherever both keep them.

The plans of both sizes say which entries of the dense model's tensors each has. A size keeps the
most important entries of one order, so that a larger one has what a smaller keeps, but for what is
rounded to whole multiples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from disp_llm.export.parts import Index, Part, made
from disp_llm.export.plan import cuts_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks

State = Mapping[str, Tensor]
"""The tensors of a model by name."""


class Carrier:
    """Knows where the entries of sizes lie in the tensors of their dense model."""

    def __init__(self, dense: PrunableModel) -> None:
        """
        Args:
            dense: the model that was pruned, which may be empty.
        """
        self.dense = dense
        state = dense.model.state_dict()
        self.empty = {
            name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()
        }

    def is_size(self, masks: Masks, state: State) -> bool:
        """Whether the tensors of a model have the shapes and indices that the masks give them."""
        parts = cuts_of(self.dense, masks).parts
        if not parts.keys() <= state.keys():
            return False
        return all(
            torch.equal(part.kept, state[name].cpu())
            if isinstance(part, Index)
            else made(part, self.empty.__getitem__).shape == state[name].shape
            for name, part in parts.items()
        )

    @torch.no_grad()
    def carry(self, larger: tuple[Masks, State], smaller: tuple[Masks, State]) -> None:
        """Gives the tensors of a size, in place, the numbers that a larger one has for the same
        entries of the dense model; others stay as they are."""
        of_larger, of_smaller = (cuts_of(self.dense, masks).parts for masks, _ in (larger, smaller))
        there = {
            part.source: name for name, part in of_larger.items() if not isinstance(part, Index)
        }
        for name, part in of_smaller.items():
            if isinstance(part, Index) or part.source not in there:
                continue
            trained, own = larger[1][there[part.source]], smaller[1][name]
            places = self._places(of_larger[there[part.source]]).flatten()
            position = torch.full((self.empty[part.source].numel(),), -1)
            position[places] = torch.arange(len(places))
            found = position[self._places(part)]
            carried = trained.cpu().flatten()[found.clamp(min=0)].to(own)
            own.copy_(torch.where((found >= 0).to(own.device), carried, own))

    def _places(self, part: Part) -> Tensor:
        """For every entry of a tensor of a size, which entry of the dense model's tensor it is."""

        def numbered(source: str) -> Tensor:
            like = self.empty[source]
            return torch.arange(like.numel()).view(like.shape)

        return made(part, numbered)
