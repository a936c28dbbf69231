"""Copies the weights of one size of a run into a smaller size, wherever both keep them.

The plans of both sizes say which entries of the original's tensors each keeps. All sizes keep the
first entries of one order of importance, so a larger size has all entries of a smaller one, up to
the rounding of widths to whole multiples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from disp_llm.exporter.parts import Cut, made
from disp_llm.exporter.plan import cuts_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks

State = Mapping[str, Tensor]
"""Tensors of a model by name."""


def is_size(original: PrunableModel, masks: Masks, state: State) -> bool:
    """Whether the tensors of a model have the shapes and indices that the masks give them."""
    parts, whole = cuts_of(original, masks), original.model.state_dict()
    return parts.keys() <= state.keys() and all(
        torch.equal(part, state[name].cpu())
        if isinstance(part, Tensor)
        else made(part, whole.__getitem__).shape == state[name].shape
        for name, part in parts.items()
    )


@torch.no_grad()
def carry(
    original: PrunableModel, larger: tuple[Masks, State], smaller: tuple[Masks, State]
) -> None:
    """Copies the numbers of a larger size, in place, into the tensors of a smaller one, wherever
    both keep the same entries of the original; other numbers stay. The original may be empty."""
    whole = original.model.state_dict()

    def numbers(name: str) -> Tensor:
        return torch.arange(whole[name].numel()).view(whole[name].shape)

    of_larger, of_smaller = (cuts_of(original, masks) for masks, _ in (larger, smaller))
    there = {part.source: name for name, part in of_larger.items() if isinstance(part, Cut)}
    for name, part in of_smaller.items():
        if isinstance(part, Tensor) or part.source not in there:
            continue
        trained, own = larger[1][there[part.source]], smaller[1][name]
        if trained.shape == own.shape == whole[part.source].shape:  # neither size cuts it
            own.copy_(trained)
            continue
        places = made(of_larger[there[part.source]], numbers).flatten()
        position = torch.full((whole[part.source].numel(),), -1)
        position[places] = torch.arange(len(places))
        found = position[made(part, numbers)]
        carried = trained.cpu().flatten()[found.clamp(min=0)].to(own)
        own.copy_(torch.where((found >= 0).to(own.device), carried, own))
