"""Which stretch of the flat vector of entries is which site of which block.

N entries of all sites, S sites (5 to 9 a block), L blocks.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF, BRANCHES, EXPERTS, HEADS, SITES, Site
from disp_llm.models.architectures import Branch, Family

STREAM_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Those whose entries are dimensions of the residual stream."""


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block that is not pruned.

    With `|S|` ones of a site its linear weights count `|S1|·qkv + |S2|·q + n·|S3|·|S4| + |S4|·|S5|`
    for n input projections, and those inside; qkv and q are those of the kept heads. A dense MLP is
    a mixture of one expert: of E, each of which keeps as many intermediate dimensions, `|S4|` are
    those of all, times the share of the experts that are kept; the router's row of each takes
    `|S3|` more, and the shared expert `shared_read·|S3| + shared_write·|S5|`.
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
    """Width inside the MLP: F, or E·F of all experts of a mixture together."""
    biases: tuple[int, ...]
    """Bias numbers that go with one entry of each site (they follow their output dimension); with a
    whole branch, those of its norms as well."""
    inside: int = 0
    """Weights of the linear layers of the attention that no site cuts."""
    cached: int = 0
    """Numbers that the KV cache holds of a token, with all heads kept."""
    heads: int = 0
    """KV heads, where they are a site; 0 where all of them stay."""
    experts: int = 1
    """E, experts of the MLP."""
    chosen: int = 1
    """How many of them a token runs through."""
    least_experts: int = 1
    """How many of them the router cannot do without."""
    prunes_experts: bool = False
    """Whether whole experts are a site."""
    router: int = 0
    """Weights that the router has for an expert and a dimension: 1, or 0 where there is none."""
    shared_read: int = 0
    """Weights of the shared expert for a dimension that it reads."""
    shared_write: int = 0
    """Those for one that it writes."""
    branches: bool = False
    """Whether the attention and the MLP as wholes are sites."""
    kind: str = ""
    """Kind of attention, where a model has several (sliding or full)."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites, in the order of their entries."""
        heads = (HEADS,) if self.heads else ()
        experts = (EXPERTS,) if self.prunes_experts else ()
        return (*SITES, *heads, *experts, *(BRANCHES if self.branches else ()))

    @property
    def used(self) -> int:
        """Intermediate dimensions that a token runs through."""
        return self.intermediate // self.experts * self.chosen

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each site."""
        inside = {"mlp_mid": self.intermediate, HEADS: self.heads, EXPERTS: self.experts}
        inside |= dict.fromkeys(BRANCHES, 1)
        return tuple(inside.get(site, self.hidden) for site in self.sites)

    @property
    def lanes(self) -> tuple[int, ...]:
        """In how many parts of equal length each site falls, all of which keep as many entries: the
        intermediate dimensions of each expert, which lie in one tensor."""
        return tuple(self.experts if site == "mlp_mid" else 1 for site in self.sites)

    @property
    def least(self) -> tuple[int, ...]:
        """How many entries of each site are kept at least, of each of its lanes; of a whole branch
        none."""
        least = dict.fromkeys(BRANCHES, 0) | {EXPERTS: self.least_experts}
        return tuple(least.get(site, 1) for site in self.sites)


@dataclass(frozen=True)
class Layout:
    """Which stretch of the flat vector is which site of which block."""

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
    def lane_of_entry(self) -> Int[Tensor, " N"]:
        """Index of the lane that each entry belongs to, rising."""
        widths = [
            length // lanes
            for length, lanes in zip(self.lengths, self.lanes, strict=True)
            for _ in range(lanes)
        ]
        return torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`layers.3.attn_in` and so on, S of them."""
        return tuple(f"layers.{i}.{site}" for i in range(len(self.blocks)) for site in self.sites)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites of a block."""
        return self.blocks[0].sites

    @property
    def has_experts(self) -> bool:
        """Whether a block is a mixture of experts."""
        return any(block.experts > 1 for block in self.blocks)

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
    if EXPERTS in sites:
        _require_experts(text, family)
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or [""] * len(blocks)
    shapes = [_measure(block, family, text, kv_heads if HEADS in sites else 0) for block in blocks]
    if EXPERTS in sites:
        shapes = [
            replace(shape, prunes_experts=True, biases=(*shape.biases, _per_expert(block, family)))
            for block, shape in zip(blocks, shapes, strict=True)
        ]
    if set(BRANCHES) & set(sites):
        shapes = [
            replace(shape, branches=True, kind=kind, biases=_with_branches(block, family, shape))
            for block, shape, kind in zip(blocks, shapes, kinds, strict=True)
        ]
    return Layout(tuple(shapes))


def _require_experts(config: Any, family: Family) -> None:
    """Refuses whole experts as a site where there are none, or where groups of them would no longer
    be of equal size."""
    experts = family.experts
    if experts is None:
        raise InputError(
            f"{config.model_type} has no experts", field="sites", hint="leave experts out"
        )
    groups = getattr(config, experts.groups, 1) if experts.groups else 1
    if groups > 1:
        raise InputError(
            f"{config.model_type} cannot lose whole experts: its router divides them into {groups} "
            "groups of equal size",
            field="sites",
            hint="leave experts out",
        )


def _require_linears(block: nn.Module, name: str, family: Family) -> None:
    """Refuses a variant of the architecture that its row does not describe."""
    modules = dict(block.named_modules())
    for branch in family.branches_of(block):
        paths = (*branch.linear_paths, *(branch.experts.modules if branch.experts else ()))
        for path in paths if has_branch(block, branch.scatter) else ():
            if path not in modules:
                raise InputError(
                    f"{name} has no {path}: this variant is not supported",
                    field="model",
                    hint="use a model whose blocks all have the branches of the others",
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
    weights |= {id(weight) for weight in expert_weights(block, branch)}
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


def expert_weights(block: nn.Module, branch: Branch) -> tuple[Tensor, ...]:
    """Of a mixture, the weights of its router and of all experts, packed; of another branch none."""
    if branch.experts is None:
        return ()
    experts: Any = block.get_submodule(branch.experts.module)
    rows: Any = block.get_submodule(branch.experts.rows)
    return rows.weight, experts.gate_up_proj, experts.down_proj


def _per_expert(block: nn.Module, family: Family) -> int:
    """Parameters that go with an expert and are no weights."""
    _, mlp = family.branches_of(block)
    parameters = dict(block.named_parameters())
    return sum(name in parameters for name in mlp.experts.counted) if mlp.experts else 0


def _measure(block: nn.Module, family: Family, config: Any, heads: int) -> BlockShape:
    attention, mlp = family.branches_of(block)
    attn_reads = [linear_at(block, path) for path in attention.reads]
    attn_writes = linear_at(block, attention.writes)
    inside_mlp, of_mid, of_out = _measure_mlp(block, mlp, config)
    biases = (0, 1 if attn_writes.bias is not None else 0, 0, of_mid, of_out)
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in attn_reads if linear.bias is not None)
        biases = (*biases, outputs // heads)
    return BlockShape(
        hidden=widths_of(attn_reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in attn_reads),
        q=widths_of(attn_writes)[0],
        biases=biases,
        inside=sum(linear_at(block, path).weight.numel() for path in attention.inside),
        cached=cached_numbers(block, family),
        heads=heads,
        **inside_mlp,
    )


def _measure_mlp(block: nn.Module, mlp: Branch, config: Any) -> tuple[dict[str, int], int, int]:
    """The part of a shape that is the MLP's, and the biases of an mlp_mid and an mlp_out entry."""
    reads = [linear_at(block, path) for path in mlp.reads]
    writes = linear_at(block, mlp.writes) if mlp.writes else None
    of_out = 1 if writes is not None and writes.bias is not None else 0
    if mlp.experts is None:
        inputs = len(reads) * mlp.fused
        found = {"num_input_projections": inputs, "intermediate": widths_of(writes)[0]}
        return found, inputs if reads[0].bias is not None else 0, of_out
    _, _, down = expert_weights(block, mlp)
    experts, _, width = down.shape
    chosen = getattr(config, mlp.experts.chosen)
    found = {
        "num_input_projections": 2,
        "intermediate": experts * width,
        "experts": experts,
        "chosen": chosen,
        "least_experts": max(chosen, 2 if mlp.experts.groups else 1),  # two are a group's score
        "router": 1,
        "shared_read": sum(widths_of(linear)[1] for linear in reads),
        "shared_write": 0 if writes is None else widths_of(writes)[0],
    }
    return found, 0, of_out
