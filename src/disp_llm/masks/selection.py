"""What is kept: the masks of a size and the numbers that they are derived from.

N entries of all sites, L blocks, M inputs of all layers that write, R rank, I inputs and O outputs
of a linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.names import ATTENTION, BRANCHES, HEADS, Site
from disp_llm.masks.layout import Layout, common_chunk


@dataclass(frozen=True)
class Adapter:
    """What is added to a linear layer's weight: `up @ down` (LoRA's B·A) and `delta`, if the weight
    itself was learned."""

    down: Float[Tensor, "R I"]
    up: Float[Tensor, "O R"]
    delta: Float[Tensor, "O I"] | None = None

    def added(self) -> Float[Tensor, "O I"]:
        """Returns the sum of both, in float32."""
        product = self.up.float() @ self.down.float()
        return product if self.delta is None else product + self.delta.float()

    def each(self, change: Callable[[Tensor], Tensor]) -> "Adapter":
        """Returns the adapter with `change` applied to every matrix."""
        delta = None if self.delta is None else change(self.delta)
        return Adapter(change(self.down), change(self.up), delta)


@dataclass(frozen=True)
class Compensation:
    """Changes to the kept weights at export that make up for the pruned ones."""

    scales: Float[Tensor, " N"] | None = None
    """Factor of every kept entry; None = all 1."""
    mean_inputs: Float[Tensor, " M"] | None = None
    """Mean inputs of the layers that write, block by block (attention's q, then the MLP's F). A
    bias replaces what a pruned input adds on average; None = no biases."""
    adapters: tuple[Adapter, ...] = ()
    """One per linear layer of the blocks, in the order of `PrunableModel.linears`; empty = none."""

    @property
    def adapter_rank(self) -> int:
        """Rank of the adapters; 0 = none."""
        return len(self.adapters[0].down) if self.adapters else 0

    def __bool__(self) -> bool:
        return self.scales is not None or self.mean_inputs is not None or bool(self.adapters)

    def on_cpu(self) -> "Compensation":
        """Returns a copy in float32 on the CPU."""
        flat = self.scales, self.mean_inputs
        scales, means = (None if t is None else t.float().cpu() for t in flat)
        adapters = tuple(one.each(lambda t: t.float().cpu()) for one in self.adapters)
        return Compensation(scales, means, adapters)


@dataclass(frozen=True)
class Selection:
    """The result of a method; the masks of every size follow from it."""

    importance: Float[Tensor, " N"]
    """Learned logits or one-shot scores: the higher, the longer an entry stays as the size shrinks.
    """
    compensation: Compensation = Compensation()
    vocabulary: tuple[int, ...] = ()
    """The original's tokens that stay; () = all."""

    def on_cpu(self) -> "Selection":
        """Returns a copy in float32 on the CPU."""
        importance, compensation = self.importance.float().cpu(), self.compensation.on_cpu()
        return Selection(importance, compensation, self.vocabulary)


@dataclass(frozen=True)
class Masks:
    """The entries kept at a size, and the selection that they come from."""

    layout: Layout
    kept: Bool[Tensor, " N"]
    selection: Selection

    @property
    def compensation(self) -> Compensation:
        """The selection's compensation; empty if no entry and no token is pruned, so that the model
        equals the original to the bit."""
        whole = self.kept.all() and not self.selection.vocabulary
        return Compensation() if whole else self.selection.compensation

    @property
    def counts(self) -> Int[Tensor, " S"]:
        """Number of kept entries in each of the S sites."""
        return self.layout.counts(self.kept.long())

    @property
    def widths(self) -> dict[str, list[int]]:
        """Kept entries by site and block; a mixture's mlp_mid is the width of each expert."""
        lanes = torch.tensor(self.layout.lanes)
        by_block = (self.counts // lanes).view(-1, len(self.layout.sites))
        return dict(zip(self.layout.sites, by_block.T.tolist(), strict=True))

    @cached_property
    def chunk(self) -> int:
        """How many residual-stream neighbours are kept or pruned together at all cut sites; 1 if
        none is cut."""
        parts = zip(self.layout.split(self.kept), self.layout.in_stream.tolist(), strict=True)
        cut = [part for part, shared in parts if shared and part.any() and not part.all()]
        return common_chunk(cut) if cut else 1

    def of_site(self, site: Site) -> Int[Tensor, " L"]:
        """Returns how many entries of a site each block keeps."""
        sites = self.layout.sites
        return self.counts.view(-1, len(sites))[:, sites.index(site)]

    @property
    def dropped(self) -> dict[str, int]:
        """Number of blocks without attention, and number without MLP."""
        names = [name for name in BRANCHES if name in self.layout.sites]
        return {name: int((self.of_site(name) == 0).sum()) for name in names}

    @property
    def heads_pruned(self) -> bool:
        """Whether an attention that stays has lost heads."""
        if HEADS not in self.layout.sites:
            return False
        kept, heads = self.of_site(HEADS), torch.tensor(self.layout.widths[HEADS])
        return bool(((kept > 0) & (kept < heads)).any())

    @property
    def kv_cache(self) -> float:
        """Size of the KV cache as a share of the dense model's."""
        for site in (HEADS, ATTENTION):
            if site in self.layout.sites:
                of_block = torch.tensor([one.cached for one in self.layout.blocks])
                kept = self.of_site(site).double() / torch.tensor(self.layout.widths[site])
                return float((kept * of_block).sum() / of_block.sum().clamp(min=1))
        return 1.0

    def indices(self) -> dict[str, Int[Tensor, " K"]]:
        """Returns the sorted int64 indices kept at each site, by site name."""
        parts = self.layout.named(self.kept)
        return {name: part.nonzero().squeeze(-1) for name, part in parts.items()}
