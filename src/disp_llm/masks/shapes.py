"""Widths of a block that is not pruned, measured on its modules."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.names import ATTENTION, BRANCH_OF, BRANCHES, EXPERTS, HEADS, MLP, SITES, Site
from disp_llm.models.family import Branch, Family


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block that is not pruned.

    With `|S|` ones of a site its linear weights count `|S1|·qkv + |S2|·q + n·|S3|·|S4| + |S4|·|S5|`
    for n input projections, and those inside; qkv and q are those of the kept heads. A dense MLP is
    a mixture of one expert: of E, each of which keeps as many intermediate dimensions, `|S4|` are
    those of all, times the share of the experts that are kept; the router's row of each takes
    `|S3|` more, or `router_reads` where that is not 0, and the shared expert
    `shared_read·|S3| + shared_write·|S5|`.
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
    head what else is its own, with a whole branch its norms as well."""
    of_experts: tuple[int, int] = (0, 0)
    """Bias numbers of the experts that go with one entry of mlp_mid, and of mlp_out with all
    experts kept."""
    inside: int = 0
    """Weights of the linear layers of the attention that no site cuts."""
    cached: int = 0
    """Numbers that the KV cache holds of a token, with all heads kept."""
    borrows: bool = False
    """Whether its attention has the keys and values of the last block of its kind that has some."""
    heads: int = 0
    """KV heads, or key heads of linear attention, where they are a site, and 1 of a block that
    cannot lose any; 0 where all of them stay."""
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
    router_reads: int = 0
    """Dimensions that the router reads whatever is kept; 0 where they are those of mlp_in."""
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


def with_branches(block: nn.Module, family: Family, shape: BlockShape) -> tuple[int, ...]:
    """Bias numbers of all sites, with all other parameters of each branch that are no weights."""
    in_experts = shape.of_experts[0] * shape.intermediate + shape.of_experts[1] * shape.hidden
    counted = {ATTENTION: 0, MLP: in_experts}
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
    if branch.experts is not None:
        packed = (f"{branch.experts.module}.{name}" for name in ("gate_up_proj", "down_proj"))
        of_experts = (*packed, f"{branch.experts.rows}.weight")
        weights |= {id(block.get_parameter(path)) for path in of_experts}
    modules = [module for name, module in block.named_modules() if name in branch.modules]
    found = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(number for key, number in found.items() if key not in weights)


def cached_numbers(block: nn.Module, family: Family) -> int:
    """Outputs of the attention's reads that the KV cache holds of a token; a state holds none."""
    own, _ = family.branches_of(block)
    if not family.is_attention(own):
        return 0
    queries = 0 if family.cached else widths_of(linear_at(block, own.writes))[0]
    paths = [path for path in family.cached or own.reads if path in own.reads]
    return sum(widths_of(linear_at(block, path))[1] for path in paths) - queries


def head_ranges(block: nn.Module, branch: Branch, path: str, width: int) -> tuple[int, ...]:
    """Widths of the ranges, each of them head by head, that a layer's outputs of that width consist
    of: one, or those of queries, keys and values."""
    if path not in branch.stacked:
        return (width,)
    values = widths_of(linear_at(block, branch.writes))[0]
    keys = (width - values) // 2
    return keys, keys, values


def expert_weights(block: nn.Module, branch: Branch) -> tuple[Tensor, ...]:
    """Of a mixture, weights of the router, (E, D), and the experts, (E, 2F, D) and (E, D, F)."""
    if branch.experts is None:
        return ()
    from disp_llm.compact.experts_disp_llm import matrices_of

    experts: Any = block.get_submodule(branch.experts.module)
    rows: Any = block.get_submodule(branch.experts.rows)
    return rows.weight, *matrices_of(experts, asdict(branch.experts))


def measure(
    block: nn.Module, family: Family, config: Any, sites: tuple[Site, ...], kind: str
) -> BlockShape:
    """The shape of a block, whose attention is of a kind."""
    attention, mlp = family.branches_of(block)
    heads = 0
    if HEADS in sites and not family.is_attention(attention):
        heads = getattr(block.get_submodule(attention.gather), attention.heads or "", 1)
    elif HEADS in sites:
        of_model = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        heads = of_model if family.supports_head_pruning else 1
    attn_reads = [linear_at(block, path) for path in attention.reads]
    attn_writes = linear_at(block, attention.writes)
    inside_mlp, of_mid, of_out = _measure_mlp(block, mlp, config)
    biases = (0, 1 if attn_writes.bias is not None else 0, 0, of_mid, of_out)
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in attn_reads if linear.bias is not None)
        own = sum(block.get_parameter(path).numel() for path in attention.per_head)
        biases = (*biases, (outputs + own) // heads)
    cached = cached_numbers(block, family)
    shape = BlockShape(
        hidden=widths_of(attn_reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in attn_reads),
        q=widths_of(attn_writes)[0],
        biases=biases,
        inside=sum(linear_at(block, path).weight.numel() for path in attention.inside),
        cached=cached,
        borrows=family.is_attention(attention) and not cached,
        heads=heads,
        **inside_mlp,
    )
    if EXPERTS in sites:
        parameters = dict(block.named_parameters())
        counted = mlp.experts.counted if mlp.experts else ()
        biases = (*biases, sum(name in parameters for name in counted))
        shape = replace(shape, prunes_experts=True, biases=biases)
    if set(BRANCHES) & set(sites):
        biases = with_branches(block, family, shape)
        shape = replace(shape, branches=True, kind=kind, biases=biases)
    return shape


def _measure_mlp(block: nn.Module, mlp: Branch, config: Any) -> tuple[dict[str, Any], int, int]:
    """The part of a shape that is the MLP's, and the biases of an mlp_mid and an mlp_out entry."""
    reads = [linear_at(block, path) for path in mlp.reads]
    writes = linear_at(block, mlp.writes) if mlp.writes else None
    of_out = 1 if writes is not None and writes.bias is not None else 0
    if mlp.experts is None:
        inputs = len(reads) * mlp.fused
        found = {"num_input_projections": inputs, "intermediate": widths_of(writes)[0]}
        return found, inputs if reads[0].bias is not None else 0, of_out
    _, _, down = expert_weights(block, mlp)
    experts, hidden, width = down.shape
    chosen = getattr(config, mlp.experts.chosen)
    found = {
        "num_input_projections": 2,
        "intermediate": experts * width,
        "experts": experts,
        "chosen": chosen,
        "least_experts": max(chosen, 2 if mlp.experts.groups else 1),  # two are a group's score
        "router": 1,
        "router_reads": hidden if "router_reads_all" in mlp.experts.quirks else 0,
        "shared_read": sum(widths_of(linear)[1] for linear in reads),
        "shared_write": 0 if writes is None else widths_of(writes)[0],
        "of_experts": (2, experts) if "biased" in mlp.experts.quirks else (0, 0),
    }
    return found, 0, of_out
