"""Hooks that make a model run masked (arXiv 2410.11988, Eqs. 2 and 3, the norm before the mask).

Of the intermediate dimensions (S4) the mask lies once, on what `down` reads. Eq. 3 has it three
times, on what gate, up and down hand on: the same number for a mask of zeros and ones, but another
gradient, which is zero for what is dropped and larger for what is kept.

N entries of all sites.
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.names import BRANCH_OF, EXPERTS, HEADS, Site
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.hooks import hooks


class Masking:
    """The masks that a model wrapped by `masked` currently runs with; set them before a forward.

    Each lies on the module that it acts on, so that the hooks are the same function for every
    block and a compiler translates one block for all.
    """

    def __init__(self, layout: Layout, places: "list[Place]", mixtures: dict[str, Any]):
        self._layout, self._places, self._mixtures = layout, places, mixtures
        self._flat = torch.ones(layout.entries)

    def set(self, flat: Float[Tensor, " N"]) -> None:
        """Takes these masks."""
        self._flat = flat
        of_site = self._layout.named(flat)
        for place in self._places:
            part = of_site[place.site]
            part = part.repeat_interleave(place.repeats) if place.repeats > 1 else part
            if place.branch:
                part = part * of_site[place.branch]
            setattr(place.module, place.name, part)
        for block, mixture in self._mixtures.items():
            mixture.set(of_site[f"{block}.mlp_mid"], of_site.get(f"{block}.{EXPERTS}"))

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """While the context lasts, all masks are one: the model is the dense one."""
        flat = self._flat
        self.set(torch.ones_like(flat.detach()))
        try:
            yield
        finally:
            self.set(flat)


MASK_IN, MASK_OUT = "disp_mask_in", "disp_mask_out"


@dataclass(frozen=True)
class Place:
    """Where a mask acts."""

    module: nn.Module
    name: str
    """Of the attribute that its hook reads: at the module's input, or at its output."""
    site: str
    """Whose entries it has, such as `layers.3.attn_in`."""
    repeats: int
    """How many neighbouring numbers an entry stands for."""
    branch: str
    """The site of the whole branch, whose one entry multiplies this mask; "" = none does."""


@contextlib.contextmanager
def masked(target: PrunableModel, sites: Collection[str] = ()) -> Iterator[Masking]:
    """While the context lasts, sites of the model are multiplied by their masks.

    Args:
        sites: those that may lose entries, in any block: elsewhere a mask of ones would only take
            memory and time. () = all.
    """
    places, mixtures = list(_places(target, sites)), dict[str, Any]()
    for i, block in enumerate(target.blocks):
        _, mlp = target.branches_of(block)
        if mlp.experts is not None:
            from disp_llm.masks.mixtures import MaskedMixture

            mixtures[f"layers.{i}"] = MaskedMixture(block, mlp.experts)
    handles = [
        place.module.register_forward_pre_hook(_on_input, with_kwargs=True)
        if place.name == MASK_IN
        else place.module.register_forward_hook(_on_output)
        for place in places
    ]
    try:
        with hooks(handles):
            yield Masking(target.layout, places, mixtures)
    finally:
        for mixture in mixtures.values():
            mixture.restore()
        for place in places:
            place.module.__dict__.pop(place.name, None)


def _places(target: PrunableModel, sites: Collection[str]) -> Iterator[Place]:
    """Where the masks of these sites act, block by block; what acts inside of experts has none."""
    for i, (block, shape) in enumerate(zip(target.blocks, target.layout.blocks, strict=True)):
        attention, mlp = target.branches_of(block)
        paths: list[tuple[Site, str, str]] = [
            ("attn_in", attention.gather, MASK_IN),
            ("attn_out", attention.scatter, MASK_OUT),
            *(("mlp_in", path, MASK_IN) for path in (mlp.gather, *mlp.beside)),
            *(("mlp_out", path, MASK_OUT) for path in (mlp.scatter, *mlp.beside)),
            (HEADS, attention.writes, MASK_IN),
            *((("mlp_mid", mlp.writes, MASK_IN),) if mlp.experts is None else ()),
        ]
        for site, path, name in paths:
            whole = f"layers.{i}.{BRANCH_OF[site]}" if shape.branches and name == MASK_OUT else ""
            if site not in shape.sites or (sites and site not in sites and not whole):
                continue
            # A head's mask lies on each of the numbers that it hands to the attention's write.
            repeats = shape.q // shape.heads if site == HEADS else 1
            module = block.get_submodule(path)
            yield Place(module, name, f"layers.{i}.{site}", repeats, whole)


def _on_input(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    hidden = args[0] if args else kwargs["hidden_states"]
    hidden = hidden * module.disp_mask_in.to(hidden.dtype)
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _on_output(module: Any, args: tuple, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden * module.disp_mask_out.to(hidden.dtype)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
