"""Tiny wrappers, and prompts with a picture for them, or with a sound."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import transformers
from configurations import DELTA, MIXERS, ROPE_OF_KINDS, SHAPE, VOCABULARY
from conftest import random_weights, sites_with, tiny_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of

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
_IDEFICS = Tiny(
    {"model_type": "llama"},
    SIGHT,
    4,
    {"pixel_values": (1, 1, 3, 16, 16)},
    {"image_token_id": PICTURE, "scale_factor": 2, "pad_token_id": 0},
)
_OF_GRID = {
    "image_token_id": PICTURE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}


def _qwen(text: dict[str, Any], **vision: Any) -> Tiny:
    return Tiny(
        text,
        GRID | vision,
        4,
        {"pixel_values": (16, 3 * 2 * 4 * 4)},
        _OF_GRID,
        {"image_grid_thw": [[1, 4, 4]]},
        types="mm_token_type_ids",
    )


_SIGLIP = SIGHT | {"model_type": "siglip_vision_model", "vision_use_head": False}
_SECTIONS = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}

_TILES = Tiny(
    {"model_type": "qwen2"},
    _SIGLIP,
    36,  # the whole and its one tile, with a mark at the end of each row
    {"pixel_values": (1, 2, 3, 16, 16)},
    {"image_token_index": PICTURE, "image_grid_pinpoints": [[16, 16]]},
    {"image_sizes": [[16, 16]]},
)

TINY: dict[str, Tiny] = {
    "aya_vision": Tiny(
        {"model_type": "cohere2", "logit_scale": 0.5, "sliding_window": 8},
        _SIGLIP,
        4,
        _PIXELS,
        {"image_token_index": PICTURE},
    ),
    "cohere2_vision": Tiny(
        {"model_type": "cohere2", "logit_scale": 0.5, "sliding_window": 8},
        _SIGLIP,
        4,
        _PIXELS,
        {"image_token_id": PICTURE, "alignment_intermediate_size": 40},
    ),
    "gemma3": Tiny(
        {"rope_parameters": ROPE_OF_KINDS, "final_logit_softcapping": 0.1, "sliding_window": 8},
        _SIGLIP,
        4,
        _PIXELS,
        {"mm_tokens_per_image": 4, "image_token_index": PICTURE},
        types="token_type_ids",
    ),
    "idefics3": _IDEFICS,
    "internvl": Tiny(
        {"model_type": "qwen3"},
        SIGHT | {"image_size": [16, 16], "patch_size": [4, 4]},
        4,
        _PIXELS,
        {"image_token_id": PICTURE, "image_seq_length": 4},
    ),
    "llava": Tiny(
        {"model_type": "llama"},
        _SIGLIP,
        16,
        _PIXELS,
        {"image_token_index": PICTURE, "vision_feature_select_strategy": "full"},
    ),
    "llava_next": replace(
        _TILES,
        text={"model_type": "mistral"},
        more=_TILES.more | {"vision_feature_select_strategy": "full"},
    ),
    "llava_onevision": replace(_TILES, more=_TILES.more | {"video_token_index": VIDEO}),
    "mistral3": Tiny(
        {"model_type": "mistral"},
        SIGHT | {"model_type": "pixtral", "head_dim": 12},
        4,
        _PIXELS,
        {"image_token_index": PICTURE},
        {"image_sizes": [[16, 16]]},
    ),
    "qwen2_5_vl": _qwen(
        {"rope_parameters": _SECTIONS}, out_hidden_size=32, fullatt_block_indexes=[1], window_size=8
    ),
    "qwen2_vl": _qwen({"rope_parameters": _SECTIONS}, embed_dim=24, hidden_size=32, mlp_ratio=2),
    "qwen3_5": _qwen(MIXERS | DELTA, out_hidden_size=32, num_position_embeddings=16),
    "qwen3_vl": _qwen(
        {"rope_parameters": _SECTIONS},
        out_hidden_size=32,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    ),
    "smolvlm": _IDEFICS,
    "voxtral": Tiny(
        {"model_type": "llama"},
        {
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 8,
            "max_source_positions": 8,
        },
        2,
        {"input_features": (1, 8, 16)},
        {"audio_token_id": PICTURE},
        sense="audio",
    ),
}
"""By `model_type`."""


def tiny_of(name: str) -> Any:
    """A tiny model of an architecture, or a tiny wrapper."""
    return tiny_wrapper(name) if name in TINY else tiny_model(name)


def tiny_wrapper_config(model_type: str, /, **text: Any) -> transformers.PreTrainedConfig:
    """A tiny configuration; the language model's with these changes."""
    tiny = TINY[model_type]
    return CONFIG_MAPPING[model_type](
        text_config=SHAPE | tiny.text | text, **{f"{tiny.sense}_config": tiny.tower}, **tiny.more
    )


def tiny_wrapper(model_type: str, seed: int = 0, **text: Any) -> Any:
    """The model, with random weights."""
    torch.manual_seed(seed)
    config = tiny_wrapper_config(model_type, **text)
    return random_weights(transformers.AutoModelForMultimodalLM.from_config(config))


def prunable_wrapper(
    model_type: str, heads: bool = False, branches: bool = False, **text: Any
) -> PrunableModel:
    """The model with the row of its language model."""
    model = tiny_wrapper(model_type, **text)
    return PrunableModel(model, family_of(model.config), sites_with(heads, branches))


@cache
def picture(model_type: str) -> dict[str, torch.Tensor]:
    """A prompt with a picture in its middle, as the model takes it."""
    tiny, noise = TINY[model_type], torch.Generator().manual_seed(1)
    words = torch.randint(4, 256, (12,), generator=noise).tolist()
    tokens = [*words[:5], BEGIN, *[PICTURE] * tiny.features, END, *words[5:]]
    given = {name: torch.randn(shape, generator=noise) for name, shape in tiny.shown.items()}
    given |= {name: torch.tensor(numbers) for name, numbers in tiny.numbers.items()}
    ids = torch.tensor([tokens])
    if tiny.types:
        given[tiny.types] = (ids == PICTURE).long()
    assert max(tokens) < VOCABULARY
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | given
