"""The tables of architectures: the tests of a row notice what it lacks, and every architecture of
transformers has a row or a reason why not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import (
    ARCHITECTURES,
    MIXTURES,
    SHAPE,
    cases,
    defaults_of,
    tiny_config,
    unusual_values,
)
from conftest import masks_of, must_refuse, unusual_prunable
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from disp_llm.config.errors import InputError
from disp_llm.exporter.cutting import compact_config
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import FAMILIES, family_of
from disp_llm.models.family import branch
from disp_llm.models.loading import empty_model, load_config
from disp_llm.training.losses import token_losses

WITHOUT_EFFECT = {
    "what a model is, hands out or runs on": (
        "_name_or_path architectures chunk_size_feed_forward dtype init_device model_type "
        "num_logits_to_keep output_attentions output_hidden_states output_router_logits "
        "problem_type return_dict "
        "transformers_version use_cache"
    ),
    "numbers of tokens": (
        "bos_token_id decoder_start_token_id eod_token_id eos_token_id pad_token_id"
    ),
    "heads for other tasks": (
        "classifier_dropout id2label label2id pooling summary_activation summary_first_dropout "
        "summary_proj_to_labels summary_type summary_use_proj"
    ),
    "first weights": (
        "embedding_initializer_range init_std initializer_range lambda_std_dev linear_a_log_max "
        "linear_a_log_min linear_dt_init_floor linear_dt_max linear_dt_min"
    ),
    "training alone": (
        "activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop dropout "
        "emb_pdrop embd_pdrop embed_dropout embedding_dropout hidden_dropout hidden_dropout_prob "
        "layerdrop resid_dropout resid_pdrop residual_dropout router_aux_loss_coef "
        "input_jitter_noise router_jitter_noise z_loss_coefficient"
    ),
    "decoders that read an encoder": "add_cross_attention is_decoder is_encoder_decoder",
    "models that are not causal": "use_bidirectional_attention",
    "blocks with experts, which have no row": "is_moe",
    "which blocks have experts, where `mlp_layer_types` or `mlp_only_layers` say so": (
        "decoder_sparse_step first_k_dense_replace"
    ),
    "groups of experts, which a test of its own has": "n_group topk_group",
    "speculative decoding": ("mtp_layer_types mtp_mlp_layer_types num_nextn_predict_layers"),
    "not read where `layer_types` or `no_rope_layers` are given": (
        "_sliding_window_pattern max_window_layers no_rope_layer_interval sliding_window_pattern"
    ),
    "not read where the width of the MLP is not to be adjusted": (
        "block_ffn_dim_multiplier block_multiple_of"
    ),
    "not read by transformers": (
        "attn_impl attn_type attn_uses_sequence_id embedding_fraction expansion_ratio "
        "learned_pos_emb n_ctx no_bias norm_type prefix_lm pretraining_tp qk_ln"
    ),
    "another function of the positions alone, the same in the original and in what was cut": (
        "rope_type"
    ),
}
"""Keys that may keep their defaults, by what they are about."""

AS_THEY_ARE = {
    ("apertus", "hidden_act"): "the only activation that has parameters",
    ("apertus1p5_text", "hidden_act"): "the only activation that has parameters",
    ("apertus1p5_text", "output_vocab_size"): "the size of the head, in place of vocab_size",
    ("falcon", "parallel_attn"): "the newer form has parallel branches only",
    ("hyperclovax", "use_post_norm"): "without it there are fewer norms",
    ("mpt", "alibi"): "transformers knows no other positions for it",
    ("doge", "num_experts"): "the row refuses its mixtures",
    ("doge", "num_experts_per_tok"): "the row refuses its mixtures",
    ("phimoe", "num_experts_per_tok"): "its router takes two",
    ("opt", "do_layer_norm_before"): "the row refuses the other value",
}
"""What else may, with the reason."""


def left_at_default(found: dict, defaults: dict, allowed: set[str]) -> set[str]:
    """Other keys with their default value, those of nested tables as well."""
    names = set()
    for key, default in defaults.items():
        if key in allowed:
            continue
        if isinstance(default, dict) and isinstance(found.get(key), dict):
            names |= left_at_default(found[key], default, allowed)
        elif found.get(key) == default:
            names.add(key)
    return names


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_unusual_configuration_leaves_nothing_at_its_default(model_type):
    found = tiny_config(model_type, **unusual_values(model_type)).to_dict()
    allowed = {key for keys in WITHOUT_EFFECT.values() for key in keys.split()} | set(SHAPE)
    allowed |= {key for name, key in AS_THEY_ARE if name == model_type}
    assert not left_at_default(found, defaults_of(model_type), allowed)


@pytest.mark.parametrize("column", ["logits_multiplier", "logits_divisor", "logits_softcap"])
def test_a_missing_column_shows_in_the_loss(column):
    """Each row that has it, without it: what `test_loss_equals_that_of_transformers`, which allows
    a tenth of this, is for."""
    having = [name for name in ARCHITECTURES if getattr(FAMILIES[name], column)]
    assert having
    for model_type in having:
        whole = unusual_prunable(model_type)
        tokens = torch.randint(4, SHAPE["vocab_size"], (2, 19))
        target = replace(whole, family=replace(whole.family, **{column: ""}))
        loss = float(target.model(tokens, labels=tokens).loss)
        assert token_losses(target, tokens).mean() != pytest.approx(loss, rel=1e-4), model_type


@pytest.mark.parametrize("model_type", cases(MIXTURES))
def test_a_configuration_has_the_numbers_of_experts_that_the_row_names(model_type):
    """`verify` reads them, and `save --plain` writes two of them."""
    experts = FAMILIES[model_type].experts
    config = tiny_config(model_type, **unusual_values(model_type))
    assert experts is not None
    written = config.to_dict()
    for key in (experts.count, experts.width, experts.chosen):
        assert isinstance(getattr(config, key), int)
        assert type(config).attribute_map.get(key, key) in written


def test_a_model_without_experts_has_the_row_of_one():
    """A dense Granite 4 can be quantised, compiled and so on, as its mixtures cannot."""
    for model_type in ("granitemoehybrid", "gemma4_text"):
        mixed = tiny_config(model_type, **unusual_values(model_type))
        assert family_of(tiny_config(model_type)).experts is None
        assert family_of(mixed) is FAMILIES[model_type]
    assert family_of(tiny_config("qwen3_moe")).experts is not None


def test_every_causal_architecture_is_known_or_has_a_reason():
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    missing = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if f"`{name}`" not in page]
    assert not missing, "add a row, or say in experiments/without_row.py why not"


def test_an_architecture_under_another_name_is_known(tmp_path):
    """GPT-SW3 has GPT-2's classes, and says a `model_type` of its own in its folder."""
    tiny_config("gpt2").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"model_type": "gpt-sw3"}))
    config = load_config(str(tmp_path))
    assert config.model_type == "gpt-sw3"
    target = PrunableModel(empty_model(config), family_of(config))
    assert compact_config(target, masks_of("random", target.layout)).model_type == "disp_gpt2"


@pytest.mark.parametrize("model_type", ["mamba", "llama4", "blip-2"])
def test_doctor_refuses_what_has_no_row(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    done = must_refuse("doctor", tmp_path)
    assert done.stderr.count("disp-llm: ") == 1
    assert f"architecture '{model_type}' is not supported" in done.stderr
    assert "docs/architectures.md" in done.stderr


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("ernie4_5_moe", {"moe_num_shared_experts": 0}, "the row has a shared expert"),
        ("youtu", {"q_lora_rank": None}, "q_lora_rank=None is not supported"),
        ("doge", {"is_moe": True, "num_experts": 4}, "mixture of experts"),
    ],
)
def test_variants_that_a_row_does_not_describe_are_refused(model_type, changes, says):
    config = tiny_config(model_type, **changes)
    with pytest.raises(InputError, match=says):
        _ = PrunableModel(empty_model(config), family_of(config)).layout


WRONG_ROWS = {
    "no list of blocks at 'layer'": {"blocks": "layer"},
    "block 0 has no attention": {"attention": branch("attention", "q_proj k_proj v_proj", "o")},
    "block 0 has no mlp.fc_in": {"mlp": branch("mlp", "fc_in up_proj", "down_proj")},
    "mlp.up_proj is a linear layer that the row does not name": {
        "mlp": branch("mlp", "gate_proj", "down_proj")
    },
    "mlp.act_fn is Tanh, no linear layer": {"mlp": branch("mlp", "act_fn up_proj", "down_proj")},
    "mlp.gate_proj does not give 2 times what mlp.down_proj reads": {
        "mlp": branch("mlp", "gate_proj up_proj", "down_proj", fused=2)
    },
}


@pytest.mark.parametrize("said", WRONG_ROWS)
def test_a_row_that_does_not_describe_its_model_is_refused_in_one_line(said):
    target = unusual_prunable("llama")
    wrong = replace(target, family=replace(target.family, **WRONG_ROWS[said]))
    with pytest.raises(InputError, match=said) as caught:
        _ = wrong.layout
    assert "docs/extend.md" in str(caught.value)
