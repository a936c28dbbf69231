"""Widths of an unpruned block, measured on its modules.

Entries of the sites: D for attn_in, attn_out, mlp_in and mlp_out, F for mlp_mid; E experts.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.names import ATTENTION, BRANCH_OF, BRANCHES, EXPERTS, HEADS, SITES, Site
from disp_llm.models.family import Branch, Family

Numbers = dict[tuple[Site, ...], int]
"""How many numbers of a block go with which sites: per entry of one of the five sites, or per pair
of entries of two; for heads, experts and branches the total."""


@dataclass(frozen=True)
class BlockShape:
    """Widths of one unpruned block. A dense MLP counts as a mixture of one expert."""

    hidden: int
    """D, width of the residual stream."""
    qkv: int
    """Total outputs of the attention's reads; q + 2kv if it reads queries, keys and values."""
    q: int
    """Inputs of the attention's write."""
    num_input_projections: int
    """Projections into the MLP: 2 if gated, 1 if plain."""
    intermediate: int
    """Inner width of the MLP: F, or E·F over all experts of a mixture."""
    heads: int = 0
    """KV heads, or key heads of linear attention; 1 if the block cannot lose any; 0 if heads are no
    site."""
    branches: bool = False
    """Whether whole attention and MLP branches are sites."""
    prunes_experts: bool = False
    """Whether whole experts are a site."""
    biases: Numbers = field(default_factory=dict, hash=False)
    """Parameters other than linear weights: biases, which follow their output dimension; other
    parameters of heads and experts; and the norms of a branch, if branches are sites."""
    inside: int = 0
    """Linear weights of the attention that no site cuts."""
    kind: str = ""
    """Kind of attention, if the model has several (sliding or full)."""
    cached: int = 0
    """Numbers in the KV cache per token, with all heads kept."""
    borrows: bool = False
    """Whether its attention reuses the keys and values of the last lender of its kind."""
    experts: int = 1
    """E, experts of the MLP."""
    chosen: int = 1
    """Experts that a token runs through."""
    least_experts: int = 1
    """Fewest experts that the router can work with."""
    beside_experts: Numbers = field(default_factory=dict, hash=False)
    """Weights of a mixture's router and shared expert."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Names of the sites, in the order of their entries."""
        heads = (HEADS,) if self.heads else ()
        experts = (EXPERTS,) if self.prunes_experts else ()
        return (*SITES, *heads, *experts, *(BRANCHES if self.branches else ()))

    @property
    def weights(self) -> Numbers:
        """Number of linear weights."""
        return {
            ("attn_in", HEADS): self.qkv,
            ("attn_out", HEADS): self.q,
            (ATTENTION,): self.inside,
            ("mlp_in", "mlp_mid", EXPERTS): self.num_input_projections,
            ("mlp_mid", "mlp_out", EXPERTS): 1,
            **self.beside_experts,
        }

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
        """Number of equal parts of each site, all of which keep the same number of entries. Only
        mlp_mid has several: one per expert, since the experts share a tensor."""
        return tuple(self.experts if site == "mlp_mid" else 1 for site in self.sites)

    @property
    def least(self) -> tuple[int, ...]:
        """Fewest kept entries in each lane of each site; 0 for a whole branch."""
        least = dict.fromkeys(BRANCHES, 0) | {EXPERTS: self.least_experts}
        return tuple(least.get(site, 1) for site in self.sites)


def measure(
    block: nn.Module, family: Family, config: Any, sites: tuple[Site, ...], kind: str
) -> BlockShape:
    """Measures a block whose attention is of the given kind."""
    attention, mlp = family.branches_of(block)
    reads = [linear_at(block, path) for path in attention.reads]
    writes = linear_at(block, attention.writes)
    heads = _heads(block, family, config) if HEADS in sites else 0
    cached = cached_numbers(block, family)
    of_mlp, biases = _measure_mlp(block, mlp, config)
    if writes.bias is not None:
        biases["attn_out",] = 1
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in reads if linear.bias is not None)
        own = sum(block.get_parameter(path).numel() for path in attention.per_head)
        biases[HEADS,] = outputs + own
    if EXPERTS in sites and mlp.experts is not None:
        parameters = dict(block.named_parameters())
        counted = sum(name in parameters for name in mlp.experts.counted)
        biases[EXPERTS,] = counted * of_mlp["experts"]
    shape = BlockShape(
        hidden=widths_of(reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in reads),
        q=widths_of(writes)[0],
        heads=heads,
        branches=bool(set(BRANCHES) & set(sites)),
        prunes_experts=EXPERTS in sites,
        biases=biases,
        inside=sum(linear_at(block, path).weight.numel() for path in attention.inside),
        kind=kind,
        cached=cached,
        borrows=family.is_attention(attention) and not cached,
        **of_mlp,
    )
    return _with_norms(block, family, shape) if shape.branches else shape


def _heads(block: nn.Module, family: Family, config: Any) -> int:
    """Number of prunable heads, one of which always stays; 1 if the block can lose none."""
    attention, _ = family.branches_of(block)
    if not family.is_attention(attention):
        return getattr(block.get_submodule(attention.gather), attention.heads or "", 1)
    if not family.supports_head_pruning:
        return 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _measure_mlp(block: nn.Module, mlp: Branch, config: Any) -> tuple[dict[str, Any], Numbers]:
    """Returns the MLP's part of the shape, and its biases."""
    reads = [linear_at(block, path) for path in mlp.reads]
    writes = linear_at(block, mlp.writes) if mlp.writes else None
    biases: Numbers = {}
    if writes is not None and writes.bias is not None:
        biases["mlp_out",] = 1
    if mlp.experts is None:
        inputs = len(reads) * mlp.fused
        if reads[0].bias is not None:
            biases["mlp_mid",] = inputs
        return {"num_input_projections": inputs, "intermediate": widths_of(writes)[0]}, biases
    row, (_, _, down) = mlp.experts, expert_weights(block, mlp)
    experts, hidden, width = down.shape
    if "biased" in row.quirks:
        biases |= {("mlp_mid", EXPERTS): 2, ("mlp_out", EXPERTS): experts}
    beside: Numbers = {("mlp_in", EXPERTS): experts}  # the rows of the router
    if "router_reads_all" in row.quirks:
        beside = {(EXPERTS,): hidden * experts}
    if writes is not None:
        beside["mlp_in",] = sum(widths_of(linear)[1] for linear in reads)
        beside["mlp_out",] = widths_of(writes)[0]
    chosen = getattr(config, row.chosen)
    found = {
        "num_input_projections": 2,
        "intermediate": experts * width,
        "experts": experts,
        "chosen": chosen,
        "least_experts": max(chosen, 2 if row.groups else 1),  # a group's score sums two experts
        "beside_experts": beside,
    }
    return found, biases


def _with_norms(block: nn.Module, family: Family, shape: BlockShape) -> BlockShape:
    """Returns the shape with each branch's other parameters, which go with the branch."""
    widths = dict(zip(shape.sites, shape.lengths, strict=True)) | {HEADS: 1, EXPERTS: 1}
    rest: Numbers = {}
    for name, branch in zip(BRANCHES, family.branches_of(block), strict=True):
        rest[name,] = _no_weights(block, branch)
        for sites, numbers in shape.biases.items():
            if BRANCH_OF[sites[0]] == name:
                rest[name,] -= numbers * widths[sites[0]]
    return replace(shape, biases=shape.biases | rest)


def _no_weights(block: nn.Module, branch: Branch) -> int:
    """Counts the parameters of a branch and its norms, except linear weights."""
    weights = {id(linear_at(block, path).weight) for path in branch.linear_paths}
    if branch.experts is not None:
        weights |= {id(block.get_parameter(path)) for path in branch.experts.weights}
    modules = [module for name, module in block.named_modules() if name in branch.modules]
    found = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(number for key, number in found.items() if key not in weights)


def cached_numbers(block: nn.Module, family: Family) -> int:
    """Numbers that the KV cache holds per token in a block; a recurrent state counts 0."""
    own, _ = family.branches_of(block)
    if not family.is_attention(own):
        return 0
    queries = 0 if family.cached else widths_of(linear_at(block, own.writes))[0]
    paths = [path for path in family.cached or own.reads if path in own.reads]
    return sum(widths_of(linear_at(block, path))[1] for path in paths) - queries


def head_ranges(block: nn.Module, branch: Branch, path: str, width: int) -> tuple[int, ...]:
    """Returns the widths of the ranges in a layer's outputs, each laid out head by head: one range,
    or those of queries, keys and values."""
    if path not in branch.stacked:
        return (width,)
    values = widths_of(linear_at(block, branch.writes))[0]
    keys = (width - values) // 2
    return keys, keys, values


def expert_weights(block: nn.Module, branch: Branch) -> tuple[Tensor, ...]:
    """Weights of a mixture: router (E, D), experts (E, 2F, D) and (E, D, F); () if none."""
    if branch.experts is None:
        return ()
    from disp_llm.compact.experts_disp_llm import matrices_of

    experts: Any = block.get_submodule(branch.experts.module)
    rows: Any = block.get_submodule(branch.experts.rows)
    return rows.weight, *matrices_of(experts, asdict(branch.experts))
