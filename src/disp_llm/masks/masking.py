"""Hooks that make a model run masked (arXiv 2410.11988, Eqs. 2 and 3, the norm before the mask).

The mask of intermediate dimensions (S4) acts once, on the input of `down`. Eq. 3 applies it three
times, to gate, up and down. A 0/1 mask gives the same output either way, but the gradient of Eq. 3
is zero for dropped entries and larger for kept ones.

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

    Each mask is stored on the module that it acts on. The hooks are then the same function in every
    block, and a compiler translates one block for all.
    """

    def __init__(self, layout: Layout, places: "list[Place]", mixtures: dict[str, Any]):
        self._layout, self._places, self._mixtures = layout, places, mixtures
        self._flat = torch.ones(layout.entries)

    def set(self, flat: Float[Tensor, " N"]) -> None:
        """Installs these masks."""
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
        """Sets all masks to one within the context: the model is the dense one."""
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
    """Attribute that the hook reads: the mask of the module's input or of its output."""
    site: str
    """Site of the mask, such as `layers.3.attn_in`."""
    repeats: int
    """How many neighbouring numbers one entry covers."""
    branch: str
    """Site of the whole branch, whose one entry multiplies this mask; "" = none."""


@contextlib.contextmanager
def masked(target: PrunableModel, sites: Collection[str] = ()) -> Iterator[Masking]:
    """Multiplies the model's sites by their masks within the context.

    Args:
        sites: sites that may lose entries, in any block; () = all. Other sites get no mask, since a
            mask of ones would only cost memory and time.
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
    """Yields where the masks of these sites act, block by block, except inside experts."""
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
            # A head's mask covers all the numbers that the head passes to the attention's write.
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
