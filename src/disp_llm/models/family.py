"""A row of the table of architectures: where a block reads and writes the residual stream.

`docs/extend.md` explains the columns by an example. N tokens, E experts, D hidden, F intermediate.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Quirk = Literal["transposed", "interleaved", "biased", "scores_inputs", "router_reads_all"]
"""transposed: weights are stored as (E, D, 2F) and (E, F, D). interleaved: gate and up alternate
row by row. biased: `gate_up_proj_bias`, (E, 2F), and `down_proj_bias`, (E, D), exist.
scores_inputs: every expert reads all tokens, scaled by the router's first output, (N, E) scores,
mostly 0. router_reads_all: the router lies outside `gather`, reads the whole residual stream and
returns three outputs."""


@dataclass(frozen=True)
class Experts:
    """The routed experts of a mixture: E gated MLPs of equal width F, packed into one tensor per
    weight. Paths are relative to the block."""

    module: str
    """Module with `gate_up_proj`, (E, 2F, D), and `down_proj`, (E, D, F)."""
    router: str
    """Module that returns (…, factors, indices) of each token's experts."""
    rows: str
    """Module whose `weight`, (E, D), scores the experts: the router or a module inside it."""
    counted: tuple[str, ...] = ()
    """Other tensors whose last dimension is E; those outside the router are passed to it."""
    count: str = "num_experts"
    """Configuration key of E."""
    width: str = "moe_intermediate_size"
    """Configuration key of F."""
    chosen: str = "num_experts_per_tok"
    """Configuration key of the number of experts per token."""
    groups: str = ""
    """Configuration key of the number of equal groups that the router divides experts into."""
    # Rarely needed.
    quirks: tuple[Quirk, ...] = ()
    """Deviations from the above."""

    @property
    def modules(self) -> tuple[str, str]:
        """Modules that a mixture has but a dense MLP lacks."""
        return self.module, self.rows

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths of the packed weights and of the router's, which are block parameters."""
        return f"{self.module}.gate_up_proj", f"{self.module}.down_proj", f"{self.rows}.weight"


@dataclass(frozen=True)
class Branch:
    """One of the two branches of a block; module paths are relative to the block."""

    reads: tuple[str, ...]
    """Linear modules that read the (normalised) residual stream, in execution order."""
    writes: str
    """Linear module whose output goes back to the residual stream."""
    gather: str
    """Module whose first input is the input of `reads`; the input selection acts here."""
    scatter: str
    """Module whose (first) output is that of `writes`; the output selection acts here."""
    fused: int = 1
    """Number of equally wide projections stacked in each of `reads` (2 for a fused gate and up)."""
    norms: tuple[str, ...] = ()
    """Norms that serve only this branch; they are removed when the whole branch is pruned."""
    experts: Experts | None = None
    """Experts of a mixture. `reads` and `writes` are then the shared expert's, whose width is never
    cut; () and "" if there is none."""
    # Rarely needed.
    inside: tuple[str, ...] = ()
    """Linear modules that do not touch the stream (second factors of low-rank projections)."""
    gathers: tuple[str, ...] = ()
    """Modules inside `gather` that each select their input; () = `gather` selects for all."""
    scatters: tuple[str, ...] = ()
    """Modules inside `scatter` that each select their output; () = `scatter` selects for all."""
    beside: tuple[str, ...] = ()
    """Modules that read what `gather` reads, and whose outputs the block adds to the branch's."""
    per_head: tuple[str, ...] = ()
    """Attention parameters with a fixed number of values per head, pruned with the head."""
    heads: str = ""
    """Attribute of linear attention with its number of key heads; "" = heads cannot be pruned."""
    stacked: tuple[str, ...] = ()
    """Those of `reads` and `per_head` that stack q, k and v; the others are ordered by head."""
    gives_pair: bool = False
    """MLP: True if it returns a pair, as attention does. Alternative: True if it is attention."""

    @property
    def linear_paths(self) -> tuple[str, ...]:
        """All of `reads`, `inside` and `writes`, in execution order."""
        return (*self.reads, *self.inside, *((self.writes,) if self.writes else ()))

    @property
    def selects_in(self) -> tuple[str, ...]:
        """Modules that each select their input from the stream."""
        return self.gathers or (self.gather,)

    @property
    def selects_out(self) -> tuple[str, ...]:
        """Modules whose outputs are each scattered back into the stream."""
        return self.scatters or (self.scatter,)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules removed when the whole branch is pruned; a block may lack some."""
        router = (self.experts.router,) if self.experts else ()
        return (self.gather, self.scatter, *self.beside, *router, *self.norms)

    def as_dict(self) -> dict[str, Any]:
        """Returns the columns as plain JSON, without empty ones of `OF_FEW`."""
        found = asdict(self)
        return {key: value for key, value in found.items() if value or key not in OF_FEW}


OF_FEW = ("experts", "gathers", "scatters", "beside", "per_head", "heads", "stacked", "gives_pair")
"""Columns left out of a branch's JSON if they are empty."""


@dataclass(frozen=True)
class Family:
    """A row of the table: one architecture.

    Norms may precede or follow a branch, and branches may be sequential or parallel: selections act
    at the edges of the branch itself, so neither needs a column.
    """

    blocks: str
    """Path of the list of blocks in the language model."""
    attention: Branch
    """The branch whose gather is the site attn_in and whose scatter is attn_out."""
    mlp: Branch
    """The branch of the sites mlp_in and mlp_out; mlp_mid lies between `reads` and `writes`."""
    mixture: Branch | None = None
    """The MLP of blocks with experts, if only some blocks have them; if all do, `mlp` is it."""
    alternatives: tuple[Branch, ...] = ()
    """Replacements of attention in some blocks: linear attention, a convolution, a state space, or
    attention without some `reads`. A block has the first kind whose modules it all contains."""
    supports_head_pruning: bool = False
    """True if a KV head can be pruned with its queries: `reads` are q, k and v in this order, and
    the block reshapes them by the head width alone."""
    requires_bos: bool = False
    """True if every window must begin with BOS (Gemma), which is never predicted."""
    unserved: str = ""
    """Why vLLM's Transformers backend cannot run an exported model; "" = it can."""
    refused: tuple[tuple[str, object, str], ...] = ()
    """Variants that this row does not cover, each as (configuration key, value, reason)."""
    # Rarely needed.
    logits_multiplier: str = ""
    """Configuration key of a factor that multiplies the logits (Cohere)."""
    logits_divisor: str = ""
    """Configuration key of a divisor of the logits (Granite)."""
    logits_softcap: str = ""
    """Configuration key of c, where logits become c·tanh(logits / c) (Gemma 2)."""
    cached: tuple[str, ...] = ()
    """The `reads` whose outputs the KV cache holds, with repeats; () = all but the queries."""
    masks_by_place: bool = True
    """True if attention is masked where positions restart, so that examples can be packed."""
    base: str = ""
    """Path, in transformers' base model, of the module that returns hidden states."""
    tower: str = ""
    """Path of the language model in the base model; set by a `Wrapper`, never by a row."""

    @property
    def can_lose_heads(self) -> bool:
        """True if heads of some kind of block can be pruned."""
        return self.supports_head_pruning or any(one.heads for one in self.alternatives)

    def is_attention(self, branch: Branch) -> bool:
        """Returns whether a branch in the place of attention is attention."""
        return branch is self.attention or (branch in self.alternatives and branch.gives_pair)

    @property
    def has_states(self) -> bool:
        """True if some blocks keep a running state in place of keys and values."""
        return not all(map(self.is_attention, self.alternatives))

    @property
    def experts(self) -> Experts | None:
        """Experts of its mixtures; None if it has none."""
        return (self.mixture or self.mlp).experts

    def base_of(self, model: Any) -> Any:
        """Returns the module that maps tokens to hidden states."""
        return model.base_model.get_submodule(self.base)

    def blocks_of(self, model: Any) -> Any:
        """Returns the list of a model's blocks."""
        return model.base_model.get_submodule(self.tower).get_submodule(self.blocks)

    def branches_of(self, block: Any) -> tuple[Branch, Branch]:
        """Returns the block's attention, or its replacement, and its MLP."""
        present = {name for name, _ in block.named_modules()}
        kinds = (self.attention, *self.alternatives)
        there = [branch for branch in kinds if branch.gather in present]
        whole = [branch for branch in there if present.issuperset(branch.reads)]
        mlp, mixture = self.mlp, self.mixture
        if mixture is not None and mixture.experts is not None:
            mlp = mixture if mixture.experts.module in present else mlp
        return (*whole, *there, self.attention)[0], mlp

    def as_dict(self) -> dict[str, Any]:
        """Returns the branches and the path of blocks as plain JSON, for an exported folder."""
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
"""Columns of a row about the output head."""


@dataclass(frozen=True)
class Wrapper:
    """Location of the language model in a model of several parts. Its row says all else, except for
    the head: the wrapper has its own, which rarely scales logits."""

    tower: str
    """Path of the language model in the base model."""
    head: tuple[str, ...] = ()
    """Columns of `HEAD` that also hold for the wrapper's own head."""

    def row(self, family: Family) -> Family:
        """Returns the language model's row, adapted to the wrapper."""
        without: dict[str, Any] = {column: "" for column in HEAD if column not in self.head}
        return replace(family, tower=self.tower, **without)


def branch(module: str, reads: Any = (), writes: str = "", norms: str = "", **more: Any) -> Branch:
    """Returns a branch that is one module, with the selections at its edges.

    Args:
        module: path in the block. Names in strings are relative to it, but norms to the block.
        more: `inside`, `per_head` and `stacked`; other columns of `Branch` and `Experts` as they
            are. Of a mixture also `router`, `counted`, and `shared`, a gated MLP for all tokens,
            with the linear layer `shared_gate` that scales its output. In place of `shared`,
            `reads` and `writes` may give paths in the block.
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
