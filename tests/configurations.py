"""Tiny configurations of every architecture: plain ones, and unusual ones, in which nothing that
changes the computation has its default value."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from disp_llm.models.architectures import FAMILIES

ARCHITECTURES = sorted(name for name in FAMILIES if name in CONFIG_MAPPING)
"""Those with a row that the installed transformers has."""
KINDS = (
    "llama", "gemma2", "gemma4_text", "phi3", "gpt2", "opt", "gpt_neox", "mpt", "cohere", "olmo2",
    "deepseek_v3", "mixtral", "gpt_oss", "llama4_text", "granitemoehybrid", "qwen3_5_text", "bamba",
    "lfm2", "minicpm3", "doge",
)  # fmt: skip
"""One for each way in which blocks are built. Two tests try every architecture, all others these;
what they say of the rest is under the mark `matrix`."""
WRAPPER_KINDS = (
    "cohere_compass", "gemma3", "gemma4", "idefics3", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe",
    "voxtral",
)  # fmt: skip
"""Heads that scale or cap, another path, a row of another name, a hybrid, experts, and one that
hears."""


def cases(names: Iterable[str], usual: Iterable[str] = (*KINDS, *WRAPPER_KINDS)) -> list[Any]:
    """Parameters of a test; all but the usual ones are under the mark `matrix`."""
    rest = pytest.mark.matrix
    return [name if name in usual else pytest.param(name, marks=rest) for name in names]


def _kind_of(model_type: str) -> str:
    family = FAMILIES[model_type]
    branches = [replace(branch, norms=()) for branch in (family.attention, family.mlp)]
    return f"{branches} {family.supports_head_pruning}"


MIXTURES = [
    name for name in ARCHITECTURES if (FAMILIES[name].mixture or FAMILIES[name].mlp).experts
]
"""Those with experts."""
DENSE = [name for name in FAMILIES if name in ARCHITECTURES and name not in MIXTURES]
DENSE_KINDS = sorted({_kind_of(name): name for name in reversed(DENSE)}.values())
"""One for each way in which rows of dense models differ, norms and the head apart: for what is
slow, and asks nothing of an architecture but its linear layers."""

VOCABULARY = 320
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""3 blocks, hidden 32, intermediate 48, 4 heads, 2 KV heads."""

TOKENS = {key: SHAPE[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
GPT2 = TOKENS | {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
GPTJ = GPT2 | {"rotary_dim": 4}
LATENT = {
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
SHAPES_OF_THEIR_OWN = {
    "gpt-sw3": GPT2,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": GPTJ,
    "codegen": GPTJ,
    "gpt_neo": TOKENS
    | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 3,
        "num_heads": 4,
        "max_position_embeddings": 128,
        "attention_types": [[["global"], 3]],
    },
    "mpt": TOKENS | {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128},
    "xglm": TOKENS
    | {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 3,
        "attention_heads": 4,
        "max_position_embeddings": 128,
    },
}
"""Of the architectures with other names than Llama's."""

ROPE_OF_KINDS = {
    kind: {"rope_type": "default", "rope_theta": theta}
    for kind, theta in (("sliding_attention", 500.0), ("full_attention", 700.0))
}
MIXERS = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1}
MIXED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 6, "num_experts_per_tok": 3}
ROUTED = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
WIDER_GLOBALLY = {
    "final_logit_softcapping": 5.0,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
"""Gemma 4, as its models of 12 and 31 thousand million parameters are, but for keys as values."""
OTHER_NAMES = {
    "qwen2_moe": MIXED | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 20},
    "qwen3_moe": MIXED | {"mlp_only_layers": [1]},
    "mellum": MIXED | {"mlp_layer_types": ["sparse", "dense", "sparse"]},
    "mixtral": LOCAL,
    "minimax_m2": LOCAL,
    "phimoe": LOCAL | {"num_experts_per_tok": 2},
    "granitemoe": LOCAL | {"logits_scaling": 4.0},
    "granitemoeshared": LOCAL | {"logits_scaling": 4.0, "shared_intermediate_size": 20},
    "granitemoe_swa": LOCAL | {"logits_scaling": 4.0, "shared_intermediate_size": 20},
    "gpt_oss": LOCAL
    | {"intermediate_size": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 900.0}},
    "llama4_text": LOCAL
    | {
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "moe_layers": [0, 2],
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
    },
    "olmoe": MIXED,
    "flex_olmo": MIXED,
    "ernie4_5_moe": {
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 2,
    },
    "qwen3_next": MIXERS
    | DELTA
    | MIXED
    | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 20},
    "qwen3_5_moe_text": MIXERS | DELTA | MIXED | {"shared_expert_intermediate_size": 20},
    "cohere_compass_text": {"rope_parameters": ROPE_OF_KINDS},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2},
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "gemma4_text": WIDER_GLOBALLY | {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": WIDER_GLOBALLY,
    "minicpm3": LATENT | {"dim_model_base": 32},
    "youtu": LATENT,
    "deepseek_v3": LATENT | ROUTED | {"first_k_dense_replace": 1},
    "glm4_moe_lite": LATENT | ROUTED | {"mlp_layer_types": ["sparse", "dense", "sparse"]},
    "hy_v3": {"first_k_dense_replace": 3, "mlp_layer_types": ["dense"] * 3},
    "glm4_moe": ROUTED | {"first_k_dense_replace": 2},
    "dots1": ROUTED | {"first_k_dense_replace": 1},
    "solar_open": ROUTED,
    "exaone_moe": MIXED
    | {"num_shared_experts": 2, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    "qwen3_5_text": MIXERS | DELTA,
    "olmo_hybrid": MIXERS | DELTA | {"linear_num_key_heads": 4},
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    "granitemoehybrid": MIXERS
    | STATES
    | {"num_local_experts": 0, "shared_intermediate_size": 48, "logits_scaling": 4.0},
    "bamba": STATES | {"attn_layer_indices": [2]},
}
"""What these need besides, or instead."""

NO_HEAD_DIM = (
    "biogpt", "cohere", "cohere_compass_text", "deepseek_v3", "falcon", "gpt_neox", "minicpm3",
    "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "stablelm", "starcoder2", "youtu",
)  # fmt: skip
NO_KV_HEADS = ("biogpt", "gpt_neox", "opt", "persimmon")
"""An engine would read a key that the model itself ignores."""


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A plain one, with these changes."""
    values = SHAPES_OF_THEIR_OWN.get(model_type, SHAPE) | OTHER_NAMES.get(model_type, {}) | changes
    if model_type in NO_HEAD_DIM:
        values.pop("head_dim", None)
    if model_type in NO_KV_HEADS:
        values.pop("num_key_value_heads", None)
    return CONFIG_MAPPING[model_type](**values)


@cache
def defaults_of(model_type: str) -> dict[str, Any]:
    """Every key of the architecture's configuration, with its default."""
    return CONFIG_MAPPING[model_type]().to_dict()


FLIPPED = (
    "alibi",
    "attention_bias",
    "attention_out_bias",
    "attention_softmax_in_fp32",
    "bias",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "mlp_bias",
    "multi_query",
    "norm_topk_prob",
    "qk_layernorm",
    "_remove_final_layer_norm",
    "reorder_and_upcast_attn",
    "lm_head_bias",
    "qkv_bias",
    "rope_interleave",
    "scale_attention_softmax_in_fp32",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "scale_embedding",
    "tie_word_embeddings",
    "use_bias",
    "use_parallel_residual",
    "use_qk_norm",
    "use_qkv_bias",
    "use_sliding_window",
)
"""Switches, which unusual configurations turn."""

UNUSUAL_VALUES = {
    "activation": "tanh",
    "activation_function": "tanh",
    "hidden_act": "tanh",
    "hidden_activation": "tanh",
    "layer_norm_eps": 0.05,
    "layer_norm_epsilon": 0.05,
    "norm_eps": 0.05,
    "norm_epsilon": 0.05,
    "rms_norm_eps": 0.05,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 0.1,  # the logits of tiny models are small
    "attention_multiplier": 0.6,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logit_scale": 0.5,
    "logits_scaling": 0.25,
    "query_pre_attn_scalar": 16,
    "clip_qkv": 1.5,
    "routed_scaling_factor": 1.3,
    "moe_norm_min": 0.6,
    "partial_rotary_factor": 0.75,
    "sliding_window": 8,
    # The second loses its attention in a test, which the first of a kind cannot.
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
"""What unusual configurations say for keys that several architectures have."""

UNUSUAL_STATES = {
    "mamba_d_conv": 3,
    "mamba_chunk_size": 8,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "mamba_expand": 1,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "time_step_limit": (0.001, 50.0),
}
SHARED = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "full_attention",  # lends to the last block
        "sliding_attention",  # lends to the next
        "sliding_attention",
        "full_attention",
    ],
    "use_double_wide_mlp": True,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "rope_parameters": ROPE_OF_KINDS
    | {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.5,
            "rope_theta": 700.0,
        }
    },
}
"""Gemma 4 with everything that blocks can have of others."""
OWN_INPUTS = SHARED | {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": VOCABULARY}
"""And with inputs of their own."""
EXPERTS_BESIDE = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
"""Of Gemma 4, experts beside the MLP."""
UNUSUAL = {
    "apertus": {"hidden_act": "xielu"},
    "apertus1p5_text": {"hidden_act": "xielu", "output_vocab_size": VOCABULARY},
    "deepseek_v3": {"tie_word_embeddings": True},
    "doge": {"keep_window_size": 8},
    "falcon": {"num_ln_in_parallel_attn": 2},
    "gemma3_text": {"rope_parameters": ROPE_OF_KINDS},
    "gemma4_text": OWN_INPUTS | EXPERTS_BESIDE,  # plain without experts
    "gemma4_unified_text": SHARED,
    "bamba": UNUSUAL_STATES | {"tie_word_embeddings": True},
    # Plain without experts, unusual with some.
    "granitemoehybrid": MIXERS
    | UNUSUAL_STATES
    | LOCAL
    | {"position_embedding_type": "rope", "shared_intermediate_size": 20},
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention"],
        "conv_L_cache": 2,
        "conv_bias": True,
    },
    "olmo_hybrid": MIXERS | {"linear_conv_kernel_dim": 3, "linear_allow_neg_eigval": False},
    "qwen3_5_text": MIXERS | {"linear_conv_kernel_dim": 3},
    "qwen3_next": MIXERS | {"linear_conv_kernel_dim": 3},
    "qwen3_5_moe_text": MIXERS | {"linear_conv_kernel_dim": 3},
    "mellum": {"rope_parameters": ROPE_OF_KINDS},
    "ernie4_5_moe": {"moe_layer_interval": 2},
    "gpt_oss": {"swiglu_alpha": 1.2, "swiglu_limit": 0.4},
    "llama4_text": {
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
        "attn_temperature_tuning": False,
        "floor_scale": 4,
        "attn_scale": 0.3,
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        "no_rope_layers": [1, 1, 0],
    },
    "gpt_neo": {"attention_types": [[["global", "local", "local"], 1]], "window_size": 8},
    "granite_swa": {"layer_rope_theta": [500.0, 700.0, 900.0]},
    "granitemoe_swa": {"layer_rope_theta": [500.0, 700.0, 900.0]},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale_all_dim": 0.7,
            "mscale": 0.9,
            "llama_4_scaling_beta": 0.3,
        }
    },
    "minicpm3": {"scale_emb": 5, "scale_depth": 0.7, "dim_model_base": 8},
    "mpt": {"attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.3, "alibi_bias_max": 4}},
    "olmo3": {"rope_parameters": ROPE_OF_KINDS},
    "opt": {"word_embed_proj_dim": 16},
    "phi3": {"original_max_position_embeddings": 64},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}
"""What they say for keys of these architectures alone."""


def unusual_values(model_type: str) -> dict[str, Any]:
    """Changes that leave nothing of what the architecture computes at its default."""
    defaults = defaults_of(model_type)
    values = {key: not defaults[key] for key in FLIPPED if key in defaults}
    values |= {key: value for key, value in UNUSUAL_VALUES.items() if key in defaults}
    rope = defaults.get("rope_parameters")
    if rope:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0} | (
            {"partial_rotary_factor": 0.75} if "partial_rotary_factor" in rope else {}
        )
    return values | UNUSUAL.get(model_type, {})
