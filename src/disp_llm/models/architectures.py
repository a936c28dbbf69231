"""Where the blocks of each architecture read and write the residual stream.

An architecture is one row of data and nothing else. The row is enough to mask a model, to count
what an entry of a mask costs, to cut the model and to load what was cut: no other file names an
architecture. Another package adds rows of its own by entry points or by `register_architecture`,
and wrappers by `register_wrapper`.
`docs/extend.md` explains the columns with an example.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.plugins import added, added_names
from disp_llm.models.family import Branch, Experts, Family, bare_branch, branch, mixture
from disp_llm.models.wrappers import ROW_OF, WRAPPERS, Wrapper

OWN_ATTENTION = "its attention does not go through transformers' attention interface"
FLATTENS = "its attention takes for granted that what the interface gives is divided into heads"
HEAD_OF_LATENT = (
    "vLLM takes the width of a head for that of a latent, unless `VLLM_MLA_DISABLE=1` is set"
)
"""Why vLLM cannot put its own attention there."""


def _attention(norms: str = "input_layernorm", inside: str = "", per_head: str = "") -> Branch:
    return branch("self_attn", "q_proj k_proj v_proj", "o_proj", 1, norms, inside, per_head)


def _gated(norms: str = "post_attention_layernorm") -> Branch:
    return branch("mlp", "gate_proj up_proj", "down_proj", norms=norms)


def _plain(norms: str = "post_attention_layernorm") -> Branch:
    return branch("mlp", "up_proj", "down_proj", norms=norms)


# Llama's names, which most architectures have taken over: Mistral, Qwen, Gemma, Granite.
_LLAMA = Family(
    "layers",
    _attention(),
    _gated(),
    supports_head_pruning=True,
)
# The same, with an attention that does not reshape by the width of a head alone.
_LLAMA_WITH_ALL_HEADS = replace(_LLAMA, supports_head_pruning=False)
_UNGATED_LLAMA = replace(_LLAMA, mlp=_plain())
_APERTUS = Family(
    "layers",
    _attention("attention_layernorm"),
    _plain("feedforward_layernorm"),
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
# In some blocks values are keys before their norm, and others take over both. Whose heads are
# taken over cannot lose any by themselves.
_GEMMA4 = replace(
    _GEMMA,
    alternatives=tuple(
        replace(
            branch("self_attn", reads, "o_proj", norms="input_layernorm post_attention_layernorm"),
            gives_pair=True,
        )
        for reads in ("q_proj k_proj", "q_proj")
    ),
    cached=("self_attn.k_proj", "self_attn.k_proj"),  # values are as wide
    supports_head_pruning=False,
)
# Experts whose router reads the stream before any norm of the block, and a dense MLP beside them.
_GEMMA4_MIXTURE = replace(
    _gated(
        "pre_feedforward_layernorm pre_feedforward_layernorm_2 post_feedforward_layernorm_1 "
        "post_feedforward_layernorm_2 post_feedforward_layernorm"
    ),
    gather="experts",
    scatter="experts",
    experts=Experts(
        "experts",
        router="router",
        rows="router.proj",
        counted=("router.per_expert_scale",),
        chosen="top_k_experts",
        quirks=("router_reads_all",),
    ),
    gathers=("experts", "mlp"),
    scatters=("experts", "mlp"),
    beside=("mlp",),
)
# Norms after both branches. Those of q and k span all heads.
_OLMO2 = Family(
    "layers", _attention("post_attention_layernorm"), _gated("post_feedforward_layernorm")
)
# A fused gate and up projection.
_PHI3 = Family(
    "layers",
    branch("self_attn", "qkv_proj", "o_proj", norms="input_layernorm"),
    branch("mlp", "gate_up_proj", "down_proj", 2, norms="post_attention_layernorm"),
)
# Parallel branches, whose one norm serves both.
_COHERE = Family("layers", _attention(""), _gated(""), logits_multiplier="logit_scale")
_GPT_NEOX = Family(
    "layers",
    branch("attention", "query_key_value", "dense", norms="input_layernorm"),
    branch("mlp", "dense_h_to_4h", "dense_4h_to_h", norms="post_attention_layernorm"),
)
_GPT2 = Family(
    "h",
    branch("attn", "c_attn", "c_proj", norms="ln_1"),
    branch("mlp", "c_fc", "c_proj", norms="ln_2"),
)
# OPT has no MLP module: fc1 and fc2 are children of the block.
_OPT = Family(
    "decoder.layers",
    branch("self_attn", "q_proj k_proj v_proj", "out_proj", norms="self_attn_layer_norm"),
    bare_branch("fc1", "fc2", "final_layer_norm"),
    masks_by_place=False,
)
# Queries, keys and values come from low-rank projections (multi-head latent attention, MLA), of
# which the first halves read.
_DEEPSEEK = Family(
    "layers",
    branch(
        "self_attn",
        "q_a_proj kv_a_proj_with_mqa",
        "o_proj",
        norms="input_layernorm",
        inside="q_b_proj kv_b_proj",
    ),
    _gated(),
    cached=("self_attn.kv_a_proj_with_mqa",),
    refused=(("q_lora_rank", None, "its queries come from one projection, not from two"),),
)
_LOCAL = {"count": "num_local_experts", "width": "intermediate_size"}
# Llama with mixtures in the place of some MLPs, or of all.
_MIXED = replace(_LLAMA, mixture=mixture())


def _shared(count: str) -> Branch:
    """An expert that all tokens run through, and a router with a bias, in groups of experts."""
    return mixture(
        shared="shared_experts",
        counted="gate.e_score_correction_bias",
        groups="n_group",
        count=count,
    )


_SHARED = _shared("n_routed_experts")
_SHARED_AND_WEIGHED = mixture(shared="shared_expert", shared_gate="shared_expert_gate")

_BLOCK_SPARSE = mixture(module="block_sparse_moe", router="router", **_LOCAL)
# A shared expert beside the mixture.
_GRANITE_MIXTURE = replace(
    _BLOCK_SPARSE,
    reads=("shared_mlp.input_linear",),
    writes="shared_mlp.output_linear",
    beside=("shared_mlp",),
    gathers=("block_sparse_moe.router", "block_sparse_moe.experts", "shared_mlp"),
    scatters=("block_sparse_moe.experts", "shared_mlp"),
)
_GRANITE_SHARED = replace(
    _LLAMA,
    mlp=_GRANITE_MIXTURE,
    logits_divisor="logits_scaling",
    refused=(("shared_intermediate_size", 0, "the row has a shared expert"),),
)


def _delta_net(reads: str, writes: str, stacked: str) -> Branch:
    """Linear attention by the gated delta rule, whose convolution mixes no channels."""
    row = branch(
        "linear_attn", reads, writes, 1, "input_layernorm", "", "A_log dt_bias conv1d.weight"
    )
    names = tuple(f"linear_attn.{name}" for name in (*stacked.split(), "conv1d.weight"))
    return replace(row, heads="num_k_heads", stacked=names)


# Most blocks have a linear attention.
_QWEN3_5 = replace(
    _LLAMA,
    alternatives=(
        _delta_net("in_proj_qkv in_proj_z in_proj_b in_proj_a", "out_proj", "in_proj_qkv"),
    ),
    cached=("self_attn.k_proj", "self_attn.v_proj"),  # the queries come with a gate
)
# A state space: a norm inside spans all of its heads, so none can go.
_STATES = branch("mamba", "in_proj", "out_proj", norms="input_layernorm")

_LIKE_LLAMA = (
    "llama mistral ministral ministral3 qwen2 qwen3 smollm3 cwm ernie4_5 helium "
    "hunyuan_v1_dense olmo seed_oss"
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(_LIKE_LLAMA.split(), _LLAMA),
    **dict.fromkeys(("arcee", "jais2", "nemotron"), _UNGATED_LLAMA),
    "diffllama": replace(_LLAMA_WITH_ALL_HEADS, unserved=OWN_ATTENTION),
    # From the values a linear layer makes a mask.
    "doge": replace(
        _LLAMA_WITH_ALL_HEADS,
        attention=_attention("input_layernorm", "dt_proj"),
        refused=(("is_moe", True, "its MLP is a mixture of experts"),),
        unserved="its attention adds a mask made of the values, which vLLM leaves out",
    ),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "exaone4": replace(_OLMO2, supports_head_pruning=True),
    "gemma": replace(_LLAMA, requires_bos=True),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma4_text": replace(_GEMMA4, mixture=_GEMMA4_MIXTURE),
    "gemma4_unified_text": _GEMMA4,
    "vaultgemma": replace(_GEMMA, attention=_attention(), mlp=_gated("pre_feedforward_layernorm")),
    "granite": replace(_LLAMA, logits_divisor="logits_scaling"),
    "granite_swa": replace(
        _LLAMA, attention=_attention(per_head="sinks"), logits_divisor="logits_scaling"
    ),
    "hyperclovax": replace(
        _LLAMA,
        attention=_attention("input_layernorm post_norm1"),
        mlp=_gated("post_attention_layernorm post_norm2"),
        logits_multiplier="logits_scaling",
    ),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, supports_head_pruning=True),
    "cohere_compass_text": replace(_COHERE, supports_head_pruning=True),
    "apertus": _APERTUS,
    "apertus1p5_text": _APERTUS,
    "nanochat": replace(
        _LLAMA,
        mlp=branch("mlp", "fc1", "fc2", norms="post_attention_layernorm"),
        logits_softcap="final_logit_softcapping",
    ),
    "starcoder2": replace(
        _LLAMA, mlp=branch("mlp", "c_fc", "c_proj", norms="post_attention_layernorm")
    ),
    # With parallel branches the first norm serves both and there is no second. Norms of q and k lie
    # in a list, one a head.
    "stablelm": Family("layers", _attention(""), _gated()),
    "phi3": _PHI3,
    "glm": replace(_PHI3, attention=_attention(), supports_head_pruning=True),
    "glm4": replace(
        _PHI3,
        attention=_attention("input_layernorm post_self_attn_layernorm"),
        mlp=branch(
            "mlp", "gate_up_proj", "down_proj", 2, "post_attention_layernorm post_mlp_layernorm"
        ),
        supports_head_pruning=True,
    ),
    "phi": Family(
        "layers",
        branch("self_attn", "q_proj k_proj v_proj", "dense"),
        branch("mlp", "fc1", "fc2"),
        supports_head_pruning=True,
    ),
    "opt": replace(
        _OPT,
        refused=(
            (
                "do_layer_norm_before",
                False,
                "the norm follows the residual sum, as in OPT-350m, so no selection fits behind it",
            ),
        ),
    ),
    "biogpt": replace(_OPT, blocks="layers", supports_head_pruning=True),
    "xglm": replace(_OPT, blocks="layers", unserved=OWN_ATTENTION),
    "gpt_neox": _GPT_NEOX,
    "persimmon": replace(
        _GPT_NEOX,
        attention=branch("self_attn", "query_key_value", "dense", norms="input_layernorm"),
    ),
    "gpt2": replace(_GPT2, unserved=FLATTENS),
    "gpt-sw3": replace(_GPT2, unserved=FLATTENS),
    "gpt_bigcode": _GPT2,
    "gpt_neo": replace(
        _GPT2,
        attention=branch(
            "attn",
            "attention.q_proj attention.k_proj attention.v_proj",
            "attention.out_proj",
            norms="ln_1",
        ),
        unserved=OWN_ATTENTION,
    ),
    "gptj": Family(
        "h",
        branch("attn", "q_proj k_proj v_proj", "out_proj"),
        branch("mlp", "fc_in", "fc_out"),
        unserved=OWN_ATTENTION,
    ),
    "codegen": Family(
        "h",
        branch("attn", "qkv_proj", "out_proj"),
        branch("mlp", "fc_in", "fc_out"),
        unserved=OWN_ATTENTION,
    ),
    "mpt": Family(
        "blocks",
        branch("attn", "Wqkv", "out_proj", norms="norm_1"),
        bare_branch("ffn.up_proj", "ffn.down_proj", "norm_2"),
        unserved=OWN_ATTENTION,
    ),
    # Its norms are the branches' own in the newer form only.
    "falcon": Family(
        "h",
        branch("self_attention", "query_key_value", "dense", norms="ln_attn"),
        branch("mlp", "dense_h_to_4h", "dense_4h_to_h", norms="ln_mlp"),
        unserved=OWN_ATTENTION,
    ),
    "minicpm3": replace(_DEEPSEEK, logits_divisor="logits_scaling", unserved=HEAD_OF_LATENT),
    "youtu": replace(_DEEPSEEK, unserved=HEAD_OF_LATENT),
    "deepseek_v3": replace(_DEEPSEEK, mixture=_SHARED),
    "glm4_moe_lite": replace(_DEEPSEEK, mixture=_SHARED),
    # Mixtures of experts.
    "qwen2_moe": replace(_LLAMA, mixture=_SHARED_AND_WEIGHED),
    "qwen3_moe": _MIXED,
    "mellum": _MIXED,
    "mixtral": replace(_LLAMA, mlp=mixture(**_LOCAL)),
    "minimax_m2": replace(
        _LLAMA_WITH_ALL_HEADS, mlp=mixture(counted="e_score_correction_bias", **_LOCAL)
    ),
    "phimoe": replace(_LLAMA, mlp=mixture(router="router", **_LOCAL)),
    "olmoe": replace(_LLAMA_WITH_ALL_HEADS, mlp=mixture(width="intermediate_size")),
    "flex_olmo": replace(
        _OLMO2, mlp=mixture("post_feedforward_layernorm", width="intermediate_size")
    ),
    "granitemoe": replace(_LLAMA, mlp=_BLOCK_SPARSE, logits_divisor="logits_scaling"),
    "granitemoeshared": _GRANITE_SHARED,
    "granitemoe_swa": replace(_GRANITE_SHARED, attention=_attention(per_head="sinks")),
    "ernie4_5_moe": replace(
        _LLAMA,
        mixture=mixture(
            shared="shared_experts",
            counted="gate.moe_statics.e_score_correction_bias",
            count="moe_num_experts",
            chosen="moe_k",
        ),
        refused=(("moe_num_shared_experts", 0, "the row has a shared expert"),),
    ),
    "gpt_oss": replace(
        _LLAMA,
        attention=_attention(per_head="sinks"),
        masks_by_place=False,
        mlp=mixture(
            counted="router.bias",
            router="router",
            gives_pair=True,
            **_LOCAL,
            quirks=("transposed", "interleaved", "biased"),
        ),
    ),
    "llama4_text": replace(
        _LLAMA,
        unserved="its router, a linear layer, gives way to one that does not select what it reads",
        blocks="model.layers",
        base="model",
        mlp=branch(
            "feed_forward", "gate_proj up_proj", "down_proj", norms="post_attention_layernorm"
        ),
        mixture=mixture(
            shared="shared_expert",
            module="feed_forward",
            router="router",
            gives_pair=True,
            **_LOCAL,
            quirks=("transposed", "scores_inputs"),
        ),
    ),
    "dots1": replace(_LLAMA, mixture=_SHARED),
    "glm4_moe": replace(_LLAMA, mixture=_SHARED),
    "solar_open": replace(_LLAMA, mlp=_SHARED),
    "exaone_moe": replace(_LLAMA, mixture=_shared("num_experts")),
    # Hybrids: most blocks have a linear attention, a convolution or a state space.
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe_text": replace(_QWEN3_5, mlp=_SHARED_AND_WEIGHED),
    "qwen3_next": replace(
        _QWEN3_5,
        mixture=_SHARED_AND_WEIGHED,
        alternatives=(_delta_net("in_proj_qkvz in_proj_ba", "out_proj", ""),),
    ),
    "olmo_hybrid": Family(
        "layers",
        _attention("post_attention_layernorm"),
        _gated("post_feedforward_layernorm"),
        alternatives=(_delta_net("q_proj k_proj v_proj b_proj a_proj g_proj", "o_proj", ""),),
    ),
    "lfm2": Family(
        "layers",
        branch("self_attn", "q_proj k_proj v_proj", "out_proj", norms="operator_norm"),
        branch("feed_forward", "w1 w3", "w2", norms="ffn_norm"),
        alternatives=(branch("conv", "in_proj", "out_proj", norms="operator_norm"),),
        supports_head_pruning=True,
    ),
    "granitemoehybrid": Family(
        "layers",
        _attention(),
        branch("shared_mlp", "input_linear", "output_linear", 2, norms="post_attention_layernorm"),
        mixture=_GRANITE_MIXTURE,
        alternatives=(_STATES,),
        supports_head_pruning=True,
        logits_divisor="logits_scaling",
    ),
    "bamba": Family(
        "layers",
        _attention(),
        branch("feed_forward", "gate_proj up_proj", "down_proj", norms="pre_ff_layernorm"),
        alternatives=(_STATES,),
        supports_head_pruning=True,
    ),
}
"""The rows that come with this package, and those of `register_architecture`."""

PRUNED_PREFIX = "disp_"
"""What `model_type` begins with in a folder that this package has written."""

ARCHITECTURES = "disp_llm.architectures"
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


def register_wrapper(model_type: str, wrapper: Wrapper) -> None:
    """Adds a wrapper for this process, or replaces one.

    Args:
        model_type: that of the wrapper's configuration, which `AutoModelForMultimodalLM` has to
            know. Its language model needs a row of its own.
    """
    WRAPPERS[model_type] = wrapper
    for function in on_registration:
        function(model_type)


def model_types() -> tuple[str, ...]:
    """The `model_type` of every row; nothing of another package is imported to say so."""
    return tuple(dict.fromkeys([*FAMILIES, *added_names(ARCHITECTURES)]))


def row_of(model_type: str) -> Family | None:
    """The row of an architecture, ours before another package's; None where there is none."""
    return FAMILIES.get(model_type) or added(ARCHITECTURES, model_type, Family, "model")


def row_for(config: Any) -> Family | None:
    """The row of a dense or a pruned model's configuration, of a wrapper that of its language
    model; None where there is none.

    It is without a mixture where the configuration has no experts: what is refused or slower for
    mixtures need not be for it.
    """
    model_type = config.model_type.removeprefix(PRUNED_PREFIX)
    wrapper = WRAPPERS.get(model_type)
    if wrapper is not None:
        config = config.get_text_config()
        model_type = ROW_OF.get(config.model_type, config.model_type)
    row = row_of(model_type)
    if row is None:
        return None
    experts = row.mixture.experts if row.mixture else None
    if experts is not None and not getattr(config, experts.count, 1):
        row = replace(row, mixture=None)
    return row if wrapper is None else wrapper.row(row)


def family_of(config: Any) -> Family:
    """The row of a transformers configuration.

    Raises:
        InputError: the architecture is not in the table, is none of transformers' own, is already
            pruned, or is a refused variant.
    """
    model_type = str(getattr(config, "model_type", "") or "without model_type")
    if model_type.startswith(PRUNED_PREFIX):
        raise InputError(
            "this model has been pruned already",
            field="model",
            hint="prune the original, or make another size of its run with `disp-llm export`",
        )
    family, described = row_for(config), config
    if model_type in WRAPPERS:
        described = config.get_text_config()
        model_type = described.model_type
    if family is None:
        raise _without_row(model_type)
    kind = type(config)
    if not kind.__module__.startswith("transformers."):
        raise InputError(
            f"{kind.__name__} is no class of transformers, whose own a pruned model extends",
            field="model",
            hint="use an architecture that transformers has (docs/extend.md)",
        )
    for key, value, reason in family.refused:
        if getattr(described, key, None) == value:
            raise InputError(
                f"{model_type} with {key}={value} is not supported: {reason}",
                field="model",
                hint=f"use a {model_type} model without that setting",
            )
    return family


def _without_row(model_type: str) -> InputError:
    near = nearest(model_type, [*model_types(), *WRAPPERS])
    return InputError(
        f"architecture '{model_type}' is not supported{near}",
        field="model",
        hint="docs/architectures.md lists those that are, docs/extend.md explains how to add a row",
    )
