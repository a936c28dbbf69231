"""Maps each site of each block to its stretch of the flat vector of entries.

The order is block by block, site by site: attn_in (D entries), attn_out (D), mlp_in (D), mlp_mid
(F; in a mixture F per expert), mlp_out (D), then heads, experts, attention and mlp if they are
sites.

N entries of all sites, S sites (5 to 9 a block), L blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import has_branch, inside_of, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF, EXPERTS, HEADS, SITES, Site
from disp_llm.masks.shapes import BlockShape, measure
from disp_llm.models.family import Branch, Family

STREAM_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Sites whose entries are dimensions of the residual stream."""
CHUNKS = (64, 32, 16, 8)
"""Numbers of neighbours that are worth selecting together."""
LINE = 32
"""Two-byte numbers in a cache line of most processors."""


@dataclass(frozen=True)
class Layout:
    """The sites of all blocks and their stretches of the flat vector."""

    blocks: tuple[BlockShape, ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each of the S sites."""
        return tuple(length for block in self.blocks for length in block.lengths)

    @cached_property
    def lanes(self) -> tuple[int, ...]:
        """Lanes of each of the S sites."""
        return tuple(lanes for block in self.blocks for lanes in block.lanes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Site names such as `layers.3.attn_in`, S of them."""
        return tuple(f"layers.{i}.{site}" for i in range(len(self.blocks)) for site in self.sites)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites of a block."""
        return self.blocks[0].sites

    @property
    def has_experts(self) -> bool:
        """Whether any block is a mixture of experts."""
        return any(block.experts > 1 for block in self.blocks)

    @cached_property
    def lenders(self) -> frozenset[int]:
        """Blocks whose keys and values later blocks reuse: for each kind of attention, the last
        block before those that borrow."""
        last, found = dict[str, int](), set[int]()
        for index, block in enumerate(self.blocks):
            if block.borrows:
                found.add(last[block.kind])
            else:
                last[block.kind] = index
        return frozenset(found)

    @cached_property
    def in_stream(self) -> Bool[Tensor, " S"]:
        """Marks the sites in the residual stream."""
        of_block = torch.tensor([site in STREAM_SITES for site in self.sites])
        return of_block.repeat(len(self.blocks))

    def entries_of(self, *sites: str) -> Bool[Tensor, " N"]:
        """Marks the entries of these sites, in all blocks."""
        of_site = torch.tensor([site in sites for site in self.sites])
        return of_site[self.site_of_entry % len(self.sites)]

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Entries of each site, block by block; never 0."""
        by_block = zip(*(block.lengths for block in self.blocks), strict=True)
        return dict(zip(self.sites, by_block, strict=True))

    @cached_property
    def dense_counts(self) -> Float[Tensor, " S"]:
        """Entries of each site in float64: the counts of the dense model."""
        return torch.tensor(self.lengths, dtype=torch.float64)

    @property
    def entries(self) -> int:
        """N."""
        return sum(self.lengths)

    @cached_property
    def site_of_entry(self) -> Int[Tensor, " N"]:
        """Index of each entry's site."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    def split(self, flat: Shaped[Tensor, " N"]) -> tuple[Tensor, ...]:
        """Splits the flat vector into S views, one per site."""
        return flat.split(self.lengths)

    def named(self, flat: Shaped[Tensor, " N"]) -> dict[str, Tensor]:
        """Splits the flat vector into views keyed by site name."""
        return dict(zip(self.names, self.split(flat), strict=True))

    def counts(self, flat: Shaped[Tensor, " N"]) -> Shaped[Tensor, " S"]:
        """Sums each site: the number of ones of a mask, differentiable."""
        sums = flat.new_zeros(len(self.lengths))
        return sums.index_add(0, self.site_of_entry.to(flat.device), flat)

    def by_chunks(self, flat: Float[Tensor, " N"], chunk: int) -> Float[Tensor, " N"]:
        """Returns the vector with each stream entry replaced by the mean of its chunk."""
        if chunk == 1:
            return flat
        parts = zip(self.split(flat), self.in_stream.tolist(), strict=True)
        return torch.cat(
            [
                part.unflatten(0, (-1, chunk)).mean(1).repeat_interleave(chunk) if shared else part
                for part, shared in parts
            ]
        )

    def ranked(self, scores: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Returns the indices of all entries, lane by lane, best first in each lane."""
        order = torch.argsort(scores, descending=True, stable=True)
        lanes = self._lane_of_entry.to(scores.device)[order]
        return order[torch.argsort(lanes, stable=True)]

    @cached_property
    def _lane_of_entry(self) -> Int[Tensor, " N"]:
        parts = zip(self.lengths, self.lanes, strict=True)
        widths = [length // lanes for length, lanes in parts for _ in range(lanes)]
        return torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))

    def without_dropped(self, kept: Bool[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Returns the masks with nothing kept inside a branch that is not kept itself."""
        if not self.blocks[0].branches:
            return kept
        parts = self.named(kept)
        return torch.cat(
            [
                parts[f"layers.{i}.{site}"] & parts[f"layers.{i}.{BRANCH_OF[site]}"]
                for i in range(len(self.blocks))
                for site in self.sites
            ]
        )


def group_size(site: str, align: int, chunk: int) -> int:
    """Returns how many entries of a site are kept or pruned together: `align`, in the residual
    stream its least common multiple with `chunk`; 1 for heads and experts, which are not widths."""
    if site in (HEADS, EXPERTS):
        return 1
    return math.lcm(align, chunk) if site in STREAM_SITES else align


def common_chunk(masks: Sequence[Bool[Tensor, " _"]]) -> int:
    """Returns how many neighbours all these masks keep or prune together: the largest of `CHUNKS`
    that fits, or 1."""
    for chunk in CHUNKS:
        if all(len(mask) % chunk == 0 for mask in masks):
            chunks = torch.cat([mask.view(-1, chunk) for mask in masks])
            if bool((chunks.all(1) == chunks.any(1)).all()):
                return chunk
    return 1


def usual_chunk(layout: Layout, align: int) -> int:
    """Returns the default number of residual-stream neighbours kept or pruned together: a cache
    line, or its largest part that divides the alignment and the stream width."""
    return math.gcd(LINE, align, layout.blocks[0].hidden)


def layout_of(
    blocks: nn.ModuleList, config: Any, family: Family, sites: tuple[Site, ...] = SITES
) -> Layout:
    """Measures every block of a model, which may be on the meta device.

    Args:
        sites: the sites that masks should have. The first five are always there; name both branches
            or neither.

    Raises:
        InputError: the family lacks such sites, a block does not match its row, or `layer_types`
            has the wrong length.
    """
    for index, block in enumerate(blocks):
        _require_linears(block, f"{config.model_type} block {index}", family)
    if HEADS in sites and not family.can_lose_heads:
        raise InputError(
            f"{config.model_type} cannot lose whole heads", field="sites", hint="leave heads out"
        )
    text = config.get_text_config()
    if EXPERTS in sites:
        _require_experts(text, family)
    kinds = getattr(text, "layer_types", None) or [""] * len(blocks)
    if len(kinds) != len(blocks):
        raise InputError(
            f"its layer_types names {len(kinds)} blocks, and the model has {len(blocks)}",
            field="model",
            hint="shorten `config.layer_types` too",
        )
    parts = zip(blocks, kinds, strict=True)
    return Layout(tuple(measure(block, family, text, sites, kind) for block, kind in parts))


def _require_experts(config: Any, family: Family) -> None:
    """Raises InputError if whole experts cannot be a site: there are none, or the router needs
    groups of equal size."""
    what, experts = "has no experts", family.experts
    if experts is not None:
        groups = getattr(config, experts.groups or "", 1)
        if groups == 1:
            return
        what = f"cannot lose whole experts: its router divides them into {groups} groups"
    raise InputError(f"{config.model_type} {what}", field="sites", hint="leave experts out")


def _require_linears(block: nn.Module, name: str, family: Family) -> None:
    """Raises InputError if a block and its architecture row do not match, such as an unsupported
    variant."""
    modules = dict(block.named_modules())
    for branch in family.branches_of(block):
        if branch.scatter in modules and not has_branch(block, branch.scatter):
            continue
        packed = branch.experts.modules if branch.experts else ()
        for path in (branch.gather, branch.scatter, *branch.linear_paths, *packed):
            if path not in modules:
                raise InputError(
                    f"{name} has no {path}: this variant is not supported",
                    field="model",
                    hint="use one whose blocks are all alike, or correct its row (docs/extend.md)",
                )
        wrong = _wrong_with(branch, modules, gated=branch is family.mlp)
        if wrong:
            raise InputError(
                f"{name}: {wrong}", field="model", hint="correct its row (docs/extend.md)"
            )


def _wrong_with(branch: Branch, modules: dict[str, nn.Module], gated: bool) -> str:
    """Describes how a branch differs from its row; "" if it does not.

    Args:
        gated: whether reads and write share one inner width, as in an MLP.
    """
    linears = {path: inside_of(modules[path]) for path in branch.linear_paths}
    for path, linear in linears.items():
        if getattr(getattr(linear, "weight", None), "ndim", 0) != 2:
            return f"{path} is {type(linear).__name__}, no linear layer"
    if branch.experts is not None:
        return ""
    inside = f"{branch.gather}."
    for path, module in modules.items():
        if path.startswith(inside) and type(module) is nn.Linear and path not in linears:
            return f"{path} is a linear layer that the row does not name"
    if gated and not branch.inside:
        width, _ = widths_of(linears[branch.writes])
        for path in branch.reads:
            if widths_of(linears[path])[1] != branch.fused * width:
                return f"{path} does not give {branch.fused} times what {branch.writes} reads"
    return ""
