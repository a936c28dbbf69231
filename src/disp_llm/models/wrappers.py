"""Wrappers: models whose language model is one of several parts, beside what sees or hears.

A wrapper has no row of its own. The row of its language model says everything but where that model
lies, and that the wrapper has a head of its own, which rarely scales its logits.
"""

from dataclasses import dataclass, replace
from typing import Any

from disp_llm.models.family import Family

HEAD = ("logits_multiplier", "logits_divisor", "logits_softcap")
"""Columns of a row that are about the head."""


@dataclass(frozen=True)
class Wrapper:
    """Where a wrapper has its language model."""

    tower: str
    """Path of the language model in the base model."""
    head: tuple[str, ...] = ()
    """Columns about the head that hold for the wrapper's own too; most give logits as they come."""

    def row(self, family: Family) -> Family:
        """The row of the language model, as it is seen from the wrapper."""
        without: dict[str, Any] = {column: "" for column in HEAD if column not in self.head}
        return replace(family, tower=self.tower, **without)


_LANGUAGE_MODEL = (
    "aya_vision cohere2_vision cosmos3_omni deepseek_vl deepseek_vl_hybrid exaone4_5 fun_asr_nano "
    "fuyu gemma3 glm46v glm4v glm4v_moe glm_ocr glmasr got_ocr2 internvl kimi_k25 lfm2_vl "
    "lighton_ocr llava llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6 "
    "minicpmv4_7 mistral3 moss_transcribe_diarize omniasr ovis2 paddleocr_vl qianfan_ocr "
    "qwen2_5_vl qwen2_audio qwen2_vl qwen3_5 qwen3_5_moe qwen3_asr qwen3_vl qwen3_vl_moe "
    "video_llama_3 video_llava vipllava voxtral"
)
_SCALED = {
    "cohere_compass": "logits_multiplier",
    "gemma4": "logits_softcap",
    "gemma4_unified": "logits_softcap",
    "hyperclovax_vision_v2": "logits_multiplier",
    "paligemma": "logits_softcap",
}

WRAPPERS: dict[str, Wrapper] = {
    **{name: Wrapper("language_model") for name in _LANGUAGE_MODEL.split()},
    **{name: Wrapper("language_model", (column,)) for name, column in _SCALED.items()},
    **{name: Wrapper("text_model") for name in ("idefics2", "idefics3", "smolvlm")},
}
"""By the `model_type` of the wrapper; which language model it has, its configuration says."""

ROW_OF = {
    "glm4v_moe_text": "glm4_moe",
    "glm4v_text": "glm4",
    "glm_ocr_text": "glm4",
    "paddleocr_vl_text": "ernie4_5",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""Whose row language models have that exist inside of wrappers alone: other positions, the same
blocks."""
