"""A row of the table of architectures: where a block reads and writes the residual stream.

`docs/extend.md` explains the columns with an example.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Quirk = Literal["transposed", "interleaved", "biased", "scores_inputs", "router_reads_all"]
"""transposed: weights are stored as (E, D, 2F) and (E, F, D). interleaved: gate and up alternate
row by row. biased: there are `gate_up_proj_bias`, (E, 2F), and `down_proj_bias`, (E, D).
scores_inputs: every expert reads all tokens, times what the router gives first, (N, E) scores, most
of them 0. router_reads_all: the router lies outside of `gather`, reads the whole residual stream,
and gives three things."""


@dataclass(frozen=True)
class Experts:
    """The routed experts of a mixture: gated MLPs of one width F, whose weights are packed into one
    tensor for all E of them; paths are relative to the block."""

    module: str
    """Has `gate_up_proj`, (E, 2F, D), and `down_proj`, (E, D, F)."""
    router: str
    """Module that gives (…, factors, indices) of each token's experts."""
    rows: str
    """The module whose `weight`, (E, D), is what the router chooses by: itself, or one inside."""
    counted: tuple[str, ...] = ()
    """Other tensors whose last dimension is E; those beside the router are handed to it."""
    count: str = "num_experts"
    """Configuration key of E."""
    width: str = "moe_intermediate_size"
    """Configuration key of F."""
    chosen: str = "num_experts_per_tok"
    """Configuration key of how many experts a token has."""
    groups: str = ""
    """Configuration key of how many groups of equal size the router divides them into."""
    # Of few architectures.
    quirks: tuple[Quirk, ...] = ()
    """What is otherwise than above."""

    @property
    def modules(self) -> tuple[str, str]:
        """Those that a mixture has and a dense MLP has not."""
        return self.module, self.rows


@dataclass(frozen=True)
class Branch:
    """One of the two branches of a block; module paths are relative to the block."""

    reads: tuple[str, ...]
    """Linear modules that read the (normalised) residual stream, in the order of running."""
    writes: str
    """The linear module whose output goes back towards the residual stream."""
    gather: str
    """Module whose first input is what `reads` see: the input selection acts here."""
    scatter: str
    """Module whose (first) output is that of `writes`: the output selection acts here."""
    fused: int = 1
    """How many projections of equal width each of `reads` stacks (2 for a fused gate and up)."""
    norms: tuple[str, ...] = ()
    """Norms that serve this branch alone: they go when it is pruned as a whole."""
    experts: Experts | None = None
    """Of a mixture; `reads` and `writes` are then those of the shared expert, never cut inside, or
    () and ""."""
    # Of few architectures.
    inside: tuple[str, ...] = ()
    """Linear modules that neither read nor write the stream (second halves of low-rank ones)."""
    gathers: tuple[str, ...] = ()
    """Modules inside of `gather` that select for themselves; () = `gather` does for all."""
    scatters: tuple[str, ...] = ()
    """Likewise those inside of `scatter`."""
    beside: tuple[str, ...] = ()
    """Modules that read what `gather` reads, and whose outputs the block adds to its."""
    per_head: tuple[str, ...] = ()
    """Parameters of attention with as many numbers for each head, which go with it."""
    heads: str = ""
    """What linear attention calls the number of its key heads; "" = it cannot lose any."""
    stacked: tuple[str, ...] = ()
    """Of `reads` and `per_head`, those that stack queries, keys and values; others lie by head."""
    gives_pair: bool = False
    """Whether an MLP gives a pair as attention does; of an alternative, whether it is attention."""

    @property
    def linear_paths(self) -> tuple[str, ...]:
        """Every linear module of the branch, in the order in which they run."""
        return (*self.reads, *self.inside, *((self.writes,) if self.writes else ()))

    @property
    def selects_in(self) -> tuple[str, ...]:
        """Modules that each select what they read of the stream."""
        return self.gathers or (self.gather,)

    @property
    def selects_out(self) -> tuple[str, ...]:
        """Modules whose outputs are each put back into the stream."""
        return self.scatters or (self.scatter,)

    @property
    def modules(self) -> tuple[str, ...]:
        """What goes when the branch is pruned as a whole, as far as a block has it."""
        router = (self.experts.router,) if self.experts else ()
        return (self.gather, self.scatter, *self.beside, *router, *self.norms)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without what few branches have where this has none of it."""
        found = asdict(self)
        return {key: value for key, value in found.items() if value or key not in OF_FEW}


OF_FEW = ("experts", "gathers", "scatters", "beside", "per_head", "heads", "stacked", "gives_pair")
"""Columns that are left out of the JSON of a branch that has nothing there."""


@dataclass(frozen=True)
class Family:
    """A row of the table: one architecture.

    Norms may precede or follow a branch, and branches may be sequential or parallel: selections act
    at the edges of the branch itself, so neither needs a column.
    """

    blocks: str
    """Path of the list of blocks inside the language model."""
    attention: Branch
    """The branch whose gather is the site attn_in and whose scatter is attn_out."""
    mlp: Branch
    """The branch of the sites mlp_in and mlp_out; mlp_mid lies between `reads` and `writes`."""
    mixture: Branch | None = None
    """What blocks with experts have in place of the MLP; where all have them, `mlp` is one."""
    alternatives: tuple[Branch, ...] = ()
    """What other blocks have in place of attention: linear attention, a convolution, a state space,
    or attention without some of the `reads`. A block has the first of which it has all modules."""
    supports_head_pruning: bool = False
    """Whether a KV head can be pruned with its queries: `reads` are q, k and v in this order, and
    the block reshapes them by the width of a head alone."""
    requires_bos: bool = False
    """Whether every window begins with a BOS (Gemma), which is never predicted."""
    unserved: str = ""
    """Why vLLM's Transformers backend does not run what is exported; "" = it does."""
    refused: tuple[tuple[str, object, str], ...] = ()
    """Variants that this row does not describe, each as (configuration key, value, reason)."""
    # Of few architectures.
    logits_multiplier: str = ""
    """Configuration key of a number that multiplies the logits of the head (Cohere)."""
    logits_divisor: str = ""
    """Configuration key of a number that divides the logits of the head (Granite)."""
    logits_softcap: str = ""
    """Configuration key of a number c with which logits become c·tanh(logits / c) (Gemma 2)."""
    cached: tuple[str, ...] = ()
    """The reads whose outputs the KV cache holds, named as often as it does; () = all but the
    queries."""
    masks_by_place: bool = True
    """Whether attention is masked where positions begin anew, so that examples can be packed."""
    base: str = ""
    """Path of what gives hidden states inside what transformers calls the base model."""
    tower: str = ""
    """Path of the language model inside the base model. No row says so: a `Wrapper` does."""

    @property
    def can_lose_heads(self) -> bool:
        """Whether a block of some kind can."""
        return self.supports_head_pruning or any(one.heads for one in self.alternatives)

    def is_attention(self, branch: Branch) -> bool:
        """Whether what a block has in the place of attention is attention."""
        return branch is self.attention or (branch in self.alternatives and branch.gives_pair)

    @property
    def has_states(self) -> bool:
        """Whether blocks of some kind sum up what was read, in the place of keys and values."""
        return not all(map(self.is_attention, self.alternatives))

    @property
    def experts(self) -> Experts | None:
        """Those of its mixtures, where it has some."""
        return (self.mixture or self.mlp).experts

    def base_of(self, model: Any) -> Any:
        """What of a model reads tokens and gives hidden states."""
        return model.base_model.get_submodule(self.base)

    def blocks_of(self, model: Any) -> Any:
        """The list of a model's blocks."""
        return model.base_model.get_submodule(self.tower).get_submodule(self.blocks)

    def branches_of(self, block: Any) -> tuple[Branch, Branch]:
        """Attention, or what the block has in its place, and MLP, in the order of running."""
        present = {name for name, _ in block.named_modules()}
        kinds = (self.attention, *self.alternatives)
        there = [branch for branch in kinds if branch.gather in present]
        whole = [branch for branch in there if present.issuperset(branch.reads)]
        mlp, mixture = self.mlp, self.mixture
        if mixture is not None and mixture.experts is not None:
            mlp = mixture if mixture.experts.module in present else mlp
        return (*whole, *there, self.attention)[0], mlp

    def as_dict(self) -> dict[str, Any]:
        """The branches and the path, as plain JSON: what an exported folder carries."""
        found: dict[str, Any] = {
            "blocks": f"{self.tower}.{self.blocks}" if self.tower else self.blocks,
            "attention": self.attention.as_dict(),
            "mlp": self.mlp.as_dict(),
        }
        if self.mixture:
            found["mixture"] = self.mixture.as_dict()
        if self.alternatives:
            found["alternatives"] = [branch.as_dict() for branch in self.alternatives]
        return found


HEAD = ("logits_multiplier", "logits_divisor", "logits_softcap")
"""Columns of a row that are about the head."""


@dataclass(frozen=True)
class Wrapper:
    """Where a model whose language model is one of several parts has it. The row of the language
    model says all else, but for the head, which is the wrapper's own and rarely scales its logits.
    """

    tower: str
    """Path of the language model in the base model."""
    head: tuple[str, ...] = ()
    """Columns about the head that hold for the wrapper's own too."""

    def row(self, family: Family) -> Family:
        """The row of the language model, as it is seen from the wrapper."""
        without: dict[str, Any] = {column: "" for column in HEAD if column not in self.head}
        return replace(family, tower=self.tower, **without)


def branch(module: str, reads: Any = (), writes: str = "", norms: str = "", **more: Any) -> Branch:
    """A branch that is one module, to which names are relative, but for those of norms: selections
    act at its edges.

    Args:
        more: `inside`, `per_head` and `stacked`, likewise; of a mixture of experts its `router`,
            what else is `counted`, and `shared`, a gated MLP that all tokens run through, with the
            linear layer `shared_gate` that weighs its output, in place of which `reads` and
            `writes` may give paths of others; columns of `Branch` and of `Experts` as they are.
    """
    columns: dict[str, Any] = {"gather": module, "scatter": module, "norms": tuple(norms.split())}
    for key in ("inside", "per_head", "stacked"):
        columns[key] = _paths(module, more.pop(key, ""))
    if "router" not in more:
        return Branch(_paths(module, reads), _path(module, writes), **columns | more)
    router, counted = more.pop("router"), more.pop("counted", "")
    shared, shared_gate = more.pop("shared", ""), more.pop("shared_gate", "")
    if shared:
        reads = _paths(module, f"{shared}.gate_proj {shared}.up_proj {shared_gate}")
        writes = _path(module, f"{shared}.down_proj")
    columns["gathers"] = _paths(module, f"{router} experts {shared} {shared_gate}")
    columns["scatters"] = _paths(module, f"experts {shared}")
    path, own = _path(module, router), _path(module, "experts")
    given = {key: more.pop(key) for key in Experts.__dataclass_fields__ if key in more}
    rows = given.pop("rows", path)
    columns["experts"] = Experts(own, path, rows, _paths(module, counted), **given)
    return Branch(reads, writes, **columns | more)


def _path(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _paths(module: str, names: str) -> tuple[str, ...]:
    """`mlp`, `gate_proj up_proj` -> `mlp.gate_proj`, `mlp.up_proj`."""
    return tuple(_path(module, name) for name in names.split())
