"""Where the blocks of each architecture read and write the residual stream.

An architecture is one row of data and nothing else. The row is enough to mask a model, to count
what an entry of a mask costs, to cut the model and to load what was cut: no other file names an
architecture. Another package adds rows of its own by entry points or by `register_architecture`.
`docs/add-a-family.md` explains the columns with an example.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from disp_llm.config.errors import InputError, nearest


@dataclass(frozen=True)
class Branch:
    """One of the two branches of a block; module paths are relative to the block."""

    reads: tuple[str, ...]
    """Linear modules whose inputs are the branch's (normalised) view of the residual stream."""
    writes: str
    """The linear module whose output goes back towards the residual stream."""
    gather: str
    """Module whose first input is what `reads` see: the input selection acts here."""
    scatter: str
    """Module whose (first) output is that of `writes`: the output selection acts here."""
    fused: int = 1
    """How many projections of equal width each of `reads` stacks (2 for a fused gate and up)."""
    norms: tuple[str, ...] = ()
    """Norms that serve this branch alone, where a block has them: they go when it is pruned as a
    whole."""


@dataclass(frozen=True)
class Family:
    """A row of the table: one architecture.

    Norms may precede or follow a branch, and branches may be sequential or parallel: selections act
    at the edges of the branch itself, so neither needs a column.
    """

    blocks: str
    """Path of the list of blocks inside the base model."""
    attention: Branch
    """The branch whose gather is the site attn_in and whose scatter is attn_out."""
    mlp: Branch
    """The branch whose gather is the site mlp_in and whose scatter is mlp_out; mlp_mid lies between
    `reads` and `writes`."""
    alternatives: tuple[Branch, ...] = ()
    """What blocks of other kinds have in the place of attention: linear attention, a convolution, a
    state space. A block has the one whose modules it has. Their modules give one tensor, where
    attention gives a pair."""
    supports_head_pruning: bool = False
    """Whether a KV head can be pruned with its queries: q, k and v are `reads` of attention, in
    this order, and the block reshapes them by the width of a head alone."""
    logits_divisor: str = ""
    """Configuration key of a number that divides the logits of the head (Granite); "" = none."""
    logits_softcap: str = ""
    """Configuration key of a number c with which logits become c·tanh(logits / c) (Gemma 2); "" =
    none."""
    requires_bos: bool = False
    """Whether the model needs a BOS before its text (Gemma): every window then has one in place of
    its first token, which is never predicted."""
    refused: tuple[tuple[str, object, str], ...] = ()
    """Variants that this row does not describe, each as (configuration key, value, reason)."""
    required: tuple[tuple[str, object, str], ...] = ()
    """The only variants that it does describe: (configuration key, value, what else there is)."""

    def branches_of(self, block: Any) -> tuple[Branch, Branch]:
        """Attention, or what the block has in its place, and MLP, in the order of running."""
        present = {name for name, _ in block.named_modules()}
        kinds = (self.attention, *self.alternatives)
        return next(branch for branch in kinds if branch.gather in present), self.mlp

    def as_dict(self) -> dict:
        """The branches and the path, as plain JSON: what an exported folder carries."""
        others = [asdict(branch) for branch in self.alternatives]
        return {
            "blocks": self.blocks,
            "attention": asdict(self.attention),
            "mlp": asdict(self.mlp),
        } | ({"alternatives": others} if others else {})


def _branch(module: str, reads: str, writes: str, fused: int = 1, norms: str = "") -> Branch:
    """A branch that is one module: both selections act at its edges."""
    paths = tuple(f"{module}.{name}" for name in reads.split())
    return Branch(paths, f"{module}.{writes}", module, module, fused, tuple(norms.split()))


def _attention(norms: str) -> Branch:
    return _branch("self_attn", "q_proj k_proj v_proj", "o_proj", norms=norms)


def _gated(norms: str) -> Branch:
    return _branch("mlp", "gate_proj up_proj", "down_proj", norms=norms)


# Llama's names, which most architectures have taken over: Mistral, Qwen, Gemma, Granite.
_LLAMA = Family(
    "layers",
    _attention("input_layernorm"),
    _gated("post_attention_layernorm"),
    supports_head_pruning=True,
)
# Norms before and after both branches.
_GEMMA = replace(
    _LLAMA,
    attention=_attention("input_layernorm post_attention_layernorm"),
    mlp=_gated("pre_feedforward_layernorm post_feedforward_layernorm"),
    logits_softcap="final_logit_softcapping",
    requires_bos=True,
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    # Norms of q and k span all heads (OLMo 2) or lie in a list, one a head (StableLM).
    "olmo2": Family(
        "layers", _attention("post_attention_layernorm"), _gated("post_feedforward_layernorm")
    ),
    "gemma": replace(_LLAMA, requires_bos=True),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "granite": replace(_LLAMA, logits_divisor="logits_scaling"),
    # With parallel branches the first norm serves both and there is no second.
    "stablelm": Family("layers", _attention(""), _gated("post_attention_layernorm")),
    "phi3": Family(
        "layers",
        _branch("self_attn", "qkv_proj", "o_proj", norms="input_layernorm"),
        _branch("mlp", "gate_up_proj", "down_proj", 2, norms="post_attention_layernorm"),
    ),
    "phi": Family(
        "layers",
        _branch("self_attn", "q_proj k_proj v_proj", "dense"),
        _branch("mlp", "fc1", "fc2"),
        supports_head_pruning=True,
    ),
    "opt": Family(
        "decoder.layers",
        _branch("self_attn", "q_proj k_proj v_proj", "out_proj", norms="self_attn_layer_norm"),
        # OPT has no MLP module: fc1 and fc2 are children of the block.
        Branch(("fc1",), "fc2", gather="fc1", scatter="fc2", norms=("final_layer_norm",)),
        refused=(
            (
                "do_layer_norm_before",
                False,
                "the norm follows the residual sum, as in OPT-350m, so no selection fits behind it",
            ),
        ),
    ),
    "gpt_neox": Family(
        "layers",
        _branch("attention", "query_key_value", "dense", norms="input_layernorm"),
        _branch("mlp", "dense_h_to_4h", "dense_4h_to_h", norms="post_attention_layernorm"),
    ),
    "gpt2": Family(
        "h",
        _branch("attn", "c_attn", "c_proj", norms="ln_1"),
        _branch("mlp", "c_fc", "c_proj", norms="ln_2"),
    ),
    # Its norms are the branches' own in the newer form only.
    "falcon": Family(
        "h",
        _branch("self_attention", "query_key_value", "dense", norms="ln_attn"),
        _branch("mlp", "dense_h_to_4h", "dense_4h_to_h", norms="ln_mlp"),
    ),
    # Hybrids: most blocks have a linear attention, a state space or a convolution.
    "qwen3_5_text": replace(
        _LLAMA,
        alternatives=(
            _branch(
                "linear_attn",
                "in_proj_qkv in_proj_z in_proj_b in_proj_a",
                "out_proj",
                norms="input_layernorm",
            ),
        ),
        supports_head_pruning=False,
    ),
    "olmo_hybrid": Family(
        "layers",
        _attention("post_attention_layernorm"),
        _gated("post_feedforward_layernorm"),
        alternatives=(
            _branch(
                "linear_attn",
                "q_proj k_proj v_proj a_proj b_proj g_proj",
                "o_proj",
                norms="input_layernorm",
            ),
        ),
    ),
    "lfm2": Family(
        "layers",
        _branch("self_attn", "q_proj k_proj v_proj", "out_proj", norms="operator_norm"),
        _branch("feed_forward", "w1 w3", "w2", norms="ffn_norm"),
        alternatives=(_branch("conv", "in_proj", "out_proj", norms="operator_norm"),),
    ),
    "granitemoehybrid": Family(
        "layers",
        _attention("input_layernorm"),
        _branch("shared_mlp", "input_linear", "output_linear", 2, norms="post_attention_layernorm"),
        alternatives=(_branch("mamba", "in_proj", "out_proj", norms="input_layernorm"),),
        logits_divisor="logits_scaling",
        required=(("num_local_experts", 0, "its experts are no branch of this row"),),
    ),
    "bamba": Family(
        "layers",
        _attention("input_layernorm"),
        _branch("feed_forward", "gate_proj up_proj", "down_proj", norms="pre_ff_layernorm"),
        alternatives=(_branch("mamba", "in_proj", "out_proj", norms="input_layernorm"),),
    ),
}
"""The rows that come with this package, and those of `register_architecture`."""

PRUNED_PREFIX = "disp_"
"""What `model_type` begins with in a folder that this package has written."""

PLUGINS = "disp_llm.architectures"
"""The group of entry points through which another package adds rows: the name of each is a
`model_type`, its object a `Family`."""

on_registration: list[Callable[[str], None]] = []
"""Functions that are called with every `model_type` that is registered from now on."""


def register_architecture(model_type: str, family: Family) -> None:
    """Adds a row for this process, or replaces one.

    Args:
        model_type: that of the configuration of an architecture that transformers has.
    """
    FAMILIES[model_type] = family
    for function in on_registration:
        function(model_type)


def model_types() -> tuple[str, ...]:
    """The `model_type` of every row; nothing of another package is imported to say so."""
    return tuple(dict.fromkeys([*FAMILIES, *(entry.name for entry in _plugins())]))


def row_of(model_type: str) -> Family | None:
    """The row of an architecture; None where there is none. A row of ours comes before another
    package's.

    Raises:
        InputError: the row of another package cannot be loaded.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    entry = next((entry for entry in _plugins() if entry.name == model_type), None)
    return None if entry is None else _loaded(entry)


def _plugins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=PLUGINS))


def _loaded(entry: EntryPoint) -> Family:
    """The row that an entry point names."""
    try:
        family = entry.load()
    except (ImportError, AttributeError) as error:
        raise _bad_row(entry, f"cannot be loaded ({error})") from error
    if not isinstance(family, Family):
        raise _bad_row(entry, f"is no Family but {family!r}")
    return family


def _bad_row(entry: EntryPoint, why: str) -> InputError:
    return InputError(
        f"the row of '{entry.name}', {entry.value}, {why}",
        field="model",
        hint="repair or remove the package that adds it",
    )


def family_of(config: object) -> Family:
    """The row of a transformers configuration.

    Raises:
        InputError: the architecture is not in the table, is already pruned, or is a refused
            variant.
    """
    model_type = str(getattr(config, "model_type", "") or "without model_type")
    if model_type.startswith(PRUNED_PREFIX):
        raise InputError(
            "this model has been pruned already",
            field="model",
            hint="prune the original, or make another size of its run with `disp-llm export`",
        )
    family = row_of(model_type)
    if family is None:
        known = model_types()
        raise InputError(
            f"architecture '{model_type}' is not known{nearest(model_type, list(known))}",
            field="model",
            hint=f"use one of {', '.join(sorted(known))}, "
            "or add a row as docs/add-a-family.md explains",
        )
    rules = [(rule, True) for rule in family.refused] + [(rule, False) for rule in family.required]
    for (key, value, reason), wrong in rules:
        found = getattr(config, key, None)
        if (found == value) is wrong:
            raise InputError(
                f"{model_type} with {key}={found} is not supported: {reason}",
                field="model",
                hint=f"use a {model_type} model without that setting",
            )
    return family
