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


_LANGUAGE_MODEL, _TEXT_MODEL = Wrapper("language_model"), Wrapper("text_model")

WRAPPERS: dict[str, Wrapper] = {
    "aya_vision": _LANGUAGE_MODEL,
    "cohere2_vision": _LANGUAGE_MODEL,
    "cohere_compass": Wrapper("language_model", head=("logits_multiplier",)),
    "cosmos3_omni": _LANGUAGE_MODEL,
    "deepseek_vl": _LANGUAGE_MODEL,
    "deepseek_vl_hybrid": _LANGUAGE_MODEL,
    "exaone4_5": _LANGUAGE_MODEL,
    "fun_asr_nano": _LANGUAGE_MODEL,
    "fuyu": _LANGUAGE_MODEL,
    "gemma3": _LANGUAGE_MODEL,
    "gemma4": Wrapper("language_model", head=("logits_softcap",)),
    "gemma4_unified": Wrapper("language_model", head=("logits_softcap",)),
    "glm46v": _LANGUAGE_MODEL,
    "glm4v": _LANGUAGE_MODEL,
    "glm4v_moe": _LANGUAGE_MODEL,
    "glm_ocr": _LANGUAGE_MODEL,
    "glmasr": _LANGUAGE_MODEL,
    "got_ocr2": _LANGUAGE_MODEL,
    "hyperclovax_vision_v2": Wrapper("language_model", head=("logits_multiplier",)),
    "idefics2": _TEXT_MODEL,
    "idefics3": _TEXT_MODEL,
    "internvl": _LANGUAGE_MODEL,
    "kimi_k25": _LANGUAGE_MODEL,
    "lfm2_vl": _LANGUAGE_MODEL,
    "lighton_ocr": _LANGUAGE_MODEL,
    "llava": _LANGUAGE_MODEL,
    "llava_next": _LANGUAGE_MODEL,
    "llava_next_video": _LANGUAGE_MODEL,
    "llava_onevision": _LANGUAGE_MODEL,
    "minicpm_ocr": _LANGUAGE_MODEL,
    "minicpmv4_6": _LANGUAGE_MODEL,
    "minicpmv4_7": _LANGUAGE_MODEL,
    "mistral3": _LANGUAGE_MODEL,
    "moss_transcribe_diarize": _LANGUAGE_MODEL,
    "omniasr": _LANGUAGE_MODEL,
    "ovis2": _LANGUAGE_MODEL,
    "paddleocr_vl": _LANGUAGE_MODEL,
    "paligemma": Wrapper("language_model", head=("logits_softcap",)),
    "qianfan_ocr": _LANGUAGE_MODEL,
    "qwen2_5_vl": _LANGUAGE_MODEL,
    "qwen2_audio": _LANGUAGE_MODEL,
    "qwen2_vl": _LANGUAGE_MODEL,
    "qwen3_5": _LANGUAGE_MODEL,
    "qwen3_5_moe": _LANGUAGE_MODEL,
    "qwen3_asr": _LANGUAGE_MODEL,
    "qwen3_vl": _LANGUAGE_MODEL,
    "qwen3_vl_moe": _LANGUAGE_MODEL,
    "smolvlm": _TEXT_MODEL,
    "video_llama_3": _LANGUAGE_MODEL,
    "video_llava": _LANGUAGE_MODEL,
    "vipllava": _LANGUAGE_MODEL,
    "voxtral": _LANGUAGE_MODEL,
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
