"""Tiny wrappers of every kind: what their configurations say, and what they are shown."""

from dataclasses import dataclass, field, replace
from typing import Any

from configurations import (
    DELTA,
    MIXERS,
    OTHER_NAMES,
    OWN_INPUTS,
    ROPE_OF_KINDS,
    VOCABULARY,
    WIDER_GLOBALLY,
)

BEGIN, PICTURE, END, VIDEO = 260, 261, 262, 263
"""Tokens after those of `byte_tokenizer`: where a picture or a sound begins, its features, where it
ends, and those of a video."""

SIGHT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
"""What sees 16 patches of 4×4 pixels."""

GRID = {
    "depth": 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""The same of Qwen, which takes patches in any number."""

SEGMENTS = {
    "hidden_size": 24,
    "mlp_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 4,
    "window_size": 2,
    "global_attn_indexes": [1],
    "output_channels": 8,
}
"""That of SAM, which gives 16 features of 256 patches."""

HEARING = {
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_mel_bins": 8,
}
"""What hears 8 frequencies."""

WHISPER = {
    "d_model": 24,
    "encoder_ffn_dim": 40,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "num_mel_bins": 8,
}
"""The same under older names."""


@dataclass(frozen=True)
class Tiny:
    """How a tiny wrapper is made and shown a picture."""

    text: dict[str, Any]
    """What its language model's configuration says besides the usual shape."""
    tower: dict[str, Any]
    """What that of the tower says."""
    features: int
    """How many tokens stand for a picture."""
    shown: dict[str, tuple[int, ...]]
    """Shapes of what it is given of a picture; first comes the picture itself."""
    more: dict[str, Any] = field(default_factory=dict)
    """What its own configuration says."""
    numbers: dict[str, list] = field(default_factory=dict)
    """Numbers that it is given of a picture."""
    types: str = ""
    """The argument that says which tokens stand for a picture."""
    sense: str = "vision"
    """What the tower is for."""


_PIXELS = {"pixel_values": (1, 3, 16, 16)}
_PATCHES = {"pixel_values": (16, 3, 4, 4)}
_FRAMES = {"input_features": (1, 8, 16)}
_HEARD = {"input_features_mask": [[1] * 16]}
_SIZES = {"image_sizes": [[16, 16]]}
_ON_GRID = {"image_grid_thw": [[1, 4, 4]]}

_BY_ID, _BY_INDEX = {"image_token_id": PICTURE}, {"image_token_index": PICTURE}
_VIDEO = {"video_token_id": VIDEO}
_SOUND = {"audio_token_id": PICTURE}
_OF_GRID = _BY_ID | _VIDEO | {"vision_start_token_id": BEGIN, "vision_end_token_id": END}

_SIGLIP = SIGHT | {"model_type": "siglip_vision_model", "vision_use_head": False}
_CLIP = SIGHT | {"model_type": "clip_vision_model"}
_PIXTRAL = SIGHT | {"model_type": "pixtral", "head_dim": 12}
_BY_AXES = SIGHT | {"image_size": [16, 16], "patch_size": [4, 4]}
_DEEP = {
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_WINDOWS = {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 8}

_LLAMA, _QWEN2, _QWEN3 = ({"model_type": name} for name in ("llama", "qwen2", "qwen3"))
_COHERE = {"model_type": "cohere2", "logit_scale": 0.5, "sliding_window": 8}
_SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
}
_HALF = {"rope_parameters": _SECTIONS["rope_parameters"] | {"mrope_section": [0, 1, 1]}}


def _qwen(text: dict[str, Any], vision: dict[str, Any], types: str = "mm_token_type_ids") -> Tiny:
    shown = {"pixel_values": (16, 3 * 2 * 4 * 4)}
    return Tiny(text, GRID | vision, 4, shown, _OF_GRID, _ON_GRID, types)


def _glm(text: dict[str, Any]) -> Tiny:
    marks = {"image_start_token_id": BEGIN, "image_end_token_id": END}
    tiny = _qwen(_SECTIONS | text, {"out_hidden_size": 32, "image_size": 16})
    return replace(tiny, more=_BY_ID | _VIDEO | marks)


_IDEFICS = Tiny(
    _LLAMA,
    SIGHT,
    4,
    {"pixel_values": (1, 1, 3, 16, 16)},
    _BY_ID | {"scale_factor": 2, "pad_token_id": 0},
)
_GEMMA4 = WIDER_GLOBALLY | {
    "final_logit_softcapping": 1.0,
    "rms_norm_eps": 0.05,  # keys of one input are mere signs, if there is next to none
    "sliding_window": 8,
}


def _places(side: int) -> dict[str, list]:
    """Where the patches of a square picture are, row by row."""
    return {"image_position_ids": [[[x, y] for y in range(side) for x in range(side)]]}


_TILES = Tiny(
    _QWEN2,
    _SIGLIP,
    36,  # the whole and its one tile, with a mark at the end of each row
    {"pixel_values": (1, 2, 3, 16, 16)},
    _BY_INDEX | {"image_grid_pinpoints": [[16, 16]]},
    _SIZES,
)
_WHOLE = _TILES.more | {"vision_feature_select_strategy": "full"}
_MINICPM = Tiny(
    {"model_type": "qwen3_5_text"} | MIXERS | DELTA,
    SIGHT | {"insert_layer_id": 0},
    1,
    {"pixel_values": (1, 3, 4, 4 * 16)},
    _BY_ID | _VIDEO | {"insert_layer_id": 0},
    {"target_sizes": [[4, 4]]},
)

TINY: dict[str, Tiny] = {
    "aya_vision": Tiny(_COHERE, _SIGLIP, 4, _PIXELS, _BY_INDEX),
    "cohere2_vision": Tiny(
        _COHERE, _SIGLIP, 4, _PIXELS, _BY_ID | {"alignment_intermediate_size": 40}
    ),
    "cohere_compass": _qwen({"logit_scale": 0.5, "rope_parameters": ROPE_OF_KINDS}, _DEEP),
    "cosmos3_omni": _qwen(_SECTIONS, _DEEP),
    "deepseek_vl": Tiny(_LLAMA, _SIGLIP, 16, _PIXELS, _BY_ID),
    "deepseek_vl_hybrid": Tiny(
        _LLAMA,
        _SIGLIP,
        16,
        _PIXELS | {"high_res_pixel_values": (1, 3, 64, 64)},
        _BY_ID | {"high_res_vision_config": SEGMENTS | {"num_pos_feats": 12}},
    ),
    "exaone4_5": _qwen({"model_type": "exaone4"}, _WINDOWS | {"num_key_value_heads": 1}, ""),
    "fun_asr_nano": Tiny(
        _QWEN3,
        HEARING
        | {"num_stacked_frames": 3, "num_timestamp_prediction_layers": 1, "fsmn_kernel_size": 3},
        4,
        {"input_features": (1, 4, 3 * 8)},
        _SOUND
        | {
            "adaptor_config": {
                "hidden_size": 32,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "projector_hidden_size": 40,
            }
        },
        {"input_features_mask": [[1] * 4]},
        sense="audio",
    ),
    "fuyu": Tiny(
        {"model_type": "persimmon"},
        {},
        4,
        {"pixel_values": (1, 4, 3 * 4 * 4)},
        _BY_ID | {"patch_size": 4},
    ),
    "gemma3": Tiny(
        {"rope_parameters": ROPE_OF_KINDS, "final_logit_softcapping": 0.1, "sliding_window": 8},
        _SIGLIP,
        4,
        _PIXELS,
        _BY_INDEX | {"mm_tokens_per_image": 4},
        types="token_type_ids",
    ),
    "gemma4": Tiny(
        _GEMMA4 | OWN_INPUTS,
        SIGHT
        | {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 4,
            "pooling_kernel_size": 2,
        },
        4,
        {"pixel_values": (1, 16, 3 * 4 * 4)},
        _BY_ID | _VIDEO,
        _places(4),
        types="mm_token_type_ids",
    ),
    "gemma4_unified": Tiny(
        _GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        {
            "patch_size": 2,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 24,
            "mm_posemb_size": 4,
            "output_proj_dims": 24,
        },
        4,
        {"pixel_values": (1, 4, 3 * 4 * 4)},
        _BY_ID | _VIDEO,
        _places(2),
        types="mm_token_type_ids",
    ),
    "glm46v": _glm({"model_type": "glm4v_text"}),
    "glm4v": _glm({}),
    "glm4v_moe": _glm(OTHER_NAMES["glm4_moe"] | _HALF),
    "glm_ocr": _glm({}),
    "glmasr": Tiny(
        _LLAMA,
        HEARING | {"num_key_value_heads": 2, "max_position_embeddings": 8},
        2,
        _FRAMES,
        _SOUND,
        _HEARD,
        sense="audio",
    ),
    "got_ocr2": Tiny(
        _QWEN2,
        SEGMENTS | {"initializer_range": 0.02},  # its own is so small that it would see nothing
        16,
        {"pixel_values": (1, 3, 64, 64)},
        _BY_INDEX,
    ),
    "hyperclovax_vision_v2": _qwen(
        {"model_type": "hyperclovax", "logits_scaling": 0.25}, _WINDOWS, ""
    ),
    "idefics2": Tiny(
        {"model_type": "mistral"},
        SIGHT,
        4,
        _IDEFICS.shown,
        _BY_ID
        | {
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            }
        },
    ),
    "idefics3": _IDEFICS,
    "internvl": Tiny(_QWEN3, _BY_AXES, 4, _PIXELS, _BY_ID | {"image_seq_length": 4}),
    "kimi_k25": Tiny(
        {"model_type": "deepseek_v3", "head_dim": 4} | OTHER_NAMES["deepseek_v3"],
        SIGHT | {"pos_emb_height": 4, "pos_emb_width": 4},
        4,
        _PATCHES,
        _OF_GRID | {"projection_hidden_size": 24},
        _ON_GRID,
    ),
    "lfm2_vl": Tiny(
        {"model_type": "lfm2"} | OTHER_NAMES["lfm2"],
        _SIGLIP | {"model_type": "siglip2_vision_model", "num_patches": 16},
        4,
        {"pixel_values": (1, 16, 3 * 4 * 4)},
        _BY_ID | {"projector_hidden_size": 40},
        {"spatial_shapes": [[4, 4]], "pixel_attention_mask": [[1] * 16]},
    ),
    "lighton_ocr": Tiny(_QWEN3, _PIXTRAL, 4, _PIXELS, _BY_ID, _SIZES),
    "llava": Tiny(
        _LLAMA, _SIGLIP, 16, _PIXELS, _BY_INDEX | {"vision_feature_select_strategy": "full"}
    ),
    "llava_next": replace(_TILES, text={"model_type": "mistral"}, more=_WHOLE),
    "llava_next_video": replace(_TILES, text=_LLAMA, more=_WHOLE | {"video_token_index": VIDEO}),
    "llava_onevision": replace(_TILES, more=_TILES.more | {"video_token_index": VIDEO}),
    "minicpm_ocr": replace(_MINICPM, features=4),
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": replace(_MINICPM, types="mm_token_type_ids"),
    "mistral3": Tiny({"model_type": "mistral"}, _PIXTRAL, 4, _PIXELS, _BY_INDEX, _SIZES),
    "moss_transcribe_diarize": Tiny(
        _QWEN3,
        HEARING | {"max_source_positions": 8},
        2,
        _FRAMES,
        _SOUND,
        _HEARD | {"padding_mask": [[1] * 16]},
        sense="audio",
    ),
    "omniasr": Tiny(
        _LLAMA,
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "conv_dim": [8, 8],
            "conv_kernel": [4, 2],
            "conv_stride": [4, 2],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        4,
        {"input_values": (1, 1, 32)},
        _SOUND,
        sense="audio",
    ),
    "ovis2": Tiny(
        _QWEN2,
        SIGHT | {"vocab_size": 20},
        16,
        _PIXELS,
        _BY_ID
        | {
            "hidden_size": 32,
            "vocab_size": VOCABULARY,
            "visual_indicator_token_ids": [BEGIN, END, 264, 265, 266],
        },
    ),
    "paddleocr_vl": Tiny(
        _SECTIONS, SIGHT, 4, _PATCHES, _OF_GRID, _ON_GRID, types="mm_token_type_ids"
    ),
    "paligemma": Tiny(
        {"model_type": "gemma2", "final_logit_softcapping": 0.1, "sliding_window": 8},
        _SIGLIP,
        16,
        _PIXELS,
        _BY_INDEX | {"projection_dim": 32, "hidden_size": 32},
        types="token_type_ids",
    ),
    "qianfan_ocr": Tiny(_QWEN3, _BY_AXES, 4, _PIXELS, _BY_ID | {"image_seq_length": 4}),
    "qwen2_5_vl": _qwen(_SECTIONS, _WINDOWS),
    "qwen2_audio": Tiny(
        _QWEN2,
        WHISPER | {"max_source_positions": 8},
        4,
        _FRAMES,
        {"audio_token_index": PICTURE},
        {"feature_attention_mask": [[1] * 16]},
        sense="audio",
    ),
    "qwen2_vl": _qwen(_SECTIONS, {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}),
    "qwen3_5": _qwen(MIXERS | DELTA, {"out_hidden_size": 32, "num_position_embeddings": 16}),
    "qwen3_5_moe": _qwen(
        OTHER_NAMES["qwen3_5_moe_text"], {"out_hidden_size": 32, "num_position_embeddings": 16}
    ),
    "qwen3_asr": Tiny(
        _QWEN3,
        WHISPER | {"downsample_hidden_size": 4, "output_dim": 32, "initializer_range": 0.1},
        13,  # of each 100 frames
        {"input_features": (1, 8, 100)},
        _SOUND | {"pad_token_id": 0, "eos_token_id": 2},
        {"input_features_mask": [[1] * 100]},
        sense="audio",
    ),
    "qwen3_vl": _qwen(_SECTIONS, _DEEP),
    "qwen3_vl_moe": _qwen(_SECTIONS | OTHER_NAMES["qwen3_moe"], _DEEP),
    "smolvlm": _IDEFICS,
    "video_llama_3": Tiny(
        _QWEN2,
        SIGHT,
        4,
        {"pixel_values": (16, 3 * 4 * 4)},
        _BY_ID | _VIDEO,
        _ON_GRID | {"image_merge_sizes": [2]},
    ),
    "video_llava": Tiny(
        _LLAMA,
        _CLIP,
        16,
        {"pixel_values_images": (1, 3, 16, 16)},
        _BY_INDEX | {"video_token_index": VIDEO},
    ),
    "vipllava": Tiny(_LLAMA, _CLIP, 16, _PIXELS, _BY_INDEX | {"vision_feature_layers": [-1, -2]}),
    "voxtral": Tiny(
        _LLAMA, HEARING | {"max_source_positions": 8}, 2, _FRAMES, _SOUND, sense="audio"
    ),
}
"""By `model_type`."""
