"""Which stretch of the flat vector of entries is which site of which block.

N entries of all sites, S sites (5 to 8 a block), L blocks.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF, BRANCHES, HEADS, SITES, Site
from disp_llm.models.architectures import Branch, Family

STREAM_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Those whose entries are dimensions of the residual stream."""


@dataclass(frozen=True)
class BlockShape:
    """Widths of one dense block.

    With `|S|` ones of a site its linear weights count `|S1|·qkv + |S2|·q + n·|S3|·|S4| + |S4|·|S5|`
    for n input projections, and those inside; qkv and q are those of the kept heads.
    """

    hidden: int
    """D, width of the residual stream."""
    qkv: int
    """Outputs of the attention's reads together: q + 2kv, where these are what it reads with."""
    q: int
    """Inputs of the attention's write."""
    num_input_projections: int
    """Projections that read for the MLP: 2 gated, 1 plain."""
    intermediate: int
    """F, width inside the MLP."""
    biases: tuple[int, ...]
    """Bias numbers that go with one entry of each site (they follow their output dimension); with a
    whole branch, those of its norms as well."""
    inside: int = 0
    """Weights of the linear layers of the attention that no site cuts."""
    cached: int = 0
    """Numbers that the KV cache holds of a token, with all heads kept."""
    heads: int = 0
    """KV heads, where they are a site; 0 where all of them stay."""
    branches: bool = False
    """Whether the attention and the MLP as wholes are sites."""
    kind: str = ""
    """Kind of attention, where a model has several (sliding or full)."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites, in the order of their entries."""
        heads = (HEADS,) if self.heads else ()
        return (*SITES, *heads, *(BRANCHES if self.branches else ()))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each site."""
        inside = {"mlp_mid": self.intermediate, HEADS: self.heads} | dict.fromkeys(BRANCHES, 1)
        return tuple(inside.get(site, self.hidden) for site in self.sites)


@dataclass(frozen=True)
class Layout:
    """Which stretch of the flat vector is which site of which block."""

    blocks: tuple[BlockShape, ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each of the S sites."""
        return tuple(length for block in self.blocks for length in block.lengths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`layers.3.attn_in` and so on, S of them."""
        return tuple(f"layers.{i}.{site}" for i in range(len(self.blocks)) for site in self.sites)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites of a block."""
        return self.blocks[0].sites

    @cached_property
    def in_stream(self) -> Bool[Tensor, " S"]:
        """Which sites lie in the residual stream."""
        of_block = torch.tensor([site in STREAM_SITES for site in self.sites])
        return of_block.repeat(len(self.blocks))

    @property
    def entries(self) -> int:
        """N."""
        return sum(self.lengths)

    @cached_property
    def site_of_entry(self) -> Int[Tensor, " N"]:
        """Index of the site that each entry belongs to."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    def split(self, flat: Shaped[Tensor, " N"]) -> tuple[Tensor, ...]:
        """The flat vector as S views, one a site."""
        return flat.split(self.lengths)

    def counts(self, flat: Shaped[Tensor, " N"]) -> Shaped[Tensor, " S"]:
        """Sum of each site: the number of ones of a mask, differentiable."""
        sums = flat.new_zeros(len(self.lengths))
        return sums.index_add(0, self.site_of_entry.to(flat.device), flat)

    def without_dropped(self, kept: Bool[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """The same masks with nothing kept inside of a branch that is not kept itself."""
        if not self.blocks[0].branches:
            return kept
        places = [self.sites.index(BRANCH_OF[site]) for site in self.sites]
        first = self.site_of_entry // len(self.sites) * len(self.sites)  # site of each block
        branch = first + torch.tensor(places)[self.site_of_entry % len(self.sites)]
        stays = self.counts(kept.long()) > 0
        return kept & stays[branch.to(kept.device)]


def layout_of(
    blocks: nn.ModuleList, config: Any, family: Family, sites: tuple[Site, ...] = SITES
) -> Layout:
    """Measures every block of a model (on the meta device if need be).

    Args:
        config: the model's transformers configuration.
        sites: those that masks are to have; the first five they have anyway, and both branches or
            neither.

    Raises:
        InputError: KV heads are to be one, and the family's attention cannot lose any; or a block
            is not what the family's row says.
    """
    for index, block in enumerate(blocks):
        _require_linears(block, f"{config.model_type} block {index}", family)
    if HEADS in sites and not family.supports_head_pruning:
        raise InputError(
            f"{config.model_type} cannot lose whole heads", field="sites", hint="leave heads out"
        )
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or [""] * len(blocks)
    shapes = [_measure(block, family, kv_heads if HEADS in sites else 0) for block in blocks]
    if set(BRANCHES) & set(sites):
        shapes = [
            replace(shape, branches=True, kind=kind, biases=_with_branches(block, family, shape))
            for block, shape, kind in zip(blocks, shapes, kinds, strict=True)
        ]
    return Layout(tuple(shapes))


def _require_linears(block: nn.Module, name: str, family: Family) -> None:
    """Refuses a variant of the architecture that its row does not describe."""
    modules = dict(block.named_modules())
    for branch in family.branches_of(block):
        for path in branch.linear_paths if has_branch(block, branch.scatter) else ():
            if path not in modules:
                raise InputError(
                    f"{name} has no linear layer {path}: this variant is not supported",
                    field="model",
                    hint="use a model whose blocks all have the same two branches, both dense",
                )


def _with_branches(block: nn.Module, family: Family, shape: BlockShape) -> tuple[int, ...]:
    """Bias numbers of all sites, with what else goes with each branch: all of its parameters that
    are neither weights of linear layers nor counted with the sites inside."""
    counted = dict.fromkeys(BRANCHES, 0)
    for site, length, numbers in zip(shape.sites, shape.lengths, shape.biases, strict=True):
        counted[BRANCH_OF[site]] += length * numbers
    numbers = [
        _numbers(block, branch) - counted[name]
        for name, branch in zip(BRANCHES, family.branches_of(block), strict=True)
    ]
    return (*shape.biases, *numbers)


def _numbers(block: nn.Module, branch: Branch) -> int:
    """Parameters of a branch and its norms, but for the weights of its linear layers."""
    weights = {id(linear_at(block, path).weight) for path in branch.linear_paths}
    paths = [branch.gather, branch.scatter, *branch.norms]
    modules = [module for name, module in block.named_modules() if name in paths]
    found = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(number for key, number in found.items() if key not in weights)


def cached_numbers(block: nn.Module, family: Family) -> int:
    """Outputs of the attention's reads that the KV cache holds of a token: what the row names, or
    all but the queries. What has a state of one size in place of an attention holds none."""
    own, _ = family.branches_of(block)
    if own is not family.attention:
        return 0
    queries = 0 if family.cached else widths_of(linear_at(block, own.writes))[0]
    paths = family.cached or own.reads
    return sum(widths_of(linear_at(block, path))[1] for path in paths) - queries


def _measure(block: nn.Module, family: Family, heads: int) -> BlockShape:
    attention, mlp = family.branches_of(block)
    attn_reads, mlp_reads = (
        [linear_at(block, path) for path in branch.reads] for branch in (attention, mlp)
    )
    attn_writes, mlp_writes = linear_at(block, attention.writes), linear_at(block, mlp.writes)
    num_input_projections = len(mlp_reads) * mlp.fused
    biases = (
        0,
        1 if attn_writes.bias is not None else 0,
        0,
        num_input_projections if mlp_reads[0].bias is not None else 0,
        1 if mlp_writes.bias is not None else 0,
    )
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in attn_reads if linear.bias is not None)
        biases = (*biases, outputs // heads)
    return BlockShape(
        hidden=widths_of(attn_reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in attn_reads),
        q=widths_of(attn_writes)[0],
        num_input_projections=num_input_projections,
        intermediate=widths_of(mlp_writes)[0],
        biases=biases,
        inside=sum(linear_at(block, path).weight.numel() for path in attention.inside),
        cached=cached_numbers(block, family),
        heads=heads,
    )
