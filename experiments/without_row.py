"""Why an architecture of transformers has no row: what docs/architectures.md says of it.

Of wrappers those whose language model has one, and those that are causal models to transformers.
"""

_TYPES_OF = {
    "mixture of experts": (
        "afmoe aria_text axk1 axk2 beam cohere2_moe dbrx deepseek_v2 deepseek_v32 deepseek_v4 "
        "dots3_note_text flint glm_moe_dsa hunyuan_v1_moe hy_v3 hy_v4 inkling2_loop_text "
        "inkling2_text inkling_text kolibri1 laguna lara_mini longcat_flash mimo_v2_flash "
        "minimax_m3_vl_text sarvam_mla sarvam_moe zaya"
    ),
    "hybrid with experts, or with blocks of other branches than a mixer and an MLP": (
        "bailing_hybrid falcon_h1 jamba kimi_linear lfm2_moe lfm3 minimax nemotron_h "
        "qwen4_exp_text recurrent_gemma zamba zamba2"
    ),
    "state space or recurrent: its blocks have no attention": (
        "falcon_mamba mamba mamba2 rwkv xlstm"
    ),
    "transformers 5.24 does not run the wrapper: save its language model alone (llama4_text)": (
        "llama4"
    ),
    "its attention is a mixture of experts as well": "jetmoe",
    "wrapper: its language model has no row, or nobody has tried it": (
        "dots3_note emu3 gemma3n git mllama moshi musicgen musicgen_melody phi4_multimodal "
        "qwen4_exp"
    ),
    "wrapper that nobody has tried: save its language model alone": (
        "apertus1p5 audioflamingo3 fast_vlm glmga granite_speech granite_speech_plus janus "
        "musicflamingo perception_lm pp_chart2table shieldgemma2 vibevoice vibevoice_asr"
    ),
    "wrapper of a whole causal model, head included: save that alone": (
        "blip-2 instructblip instructblipvideo"
    ),
    "encoder-decoder: its decoder has a third branch, which reads the encoder": (
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart "
        "prophetnet trocr whisper"
    ),
    "a norm follows each residual sum, so no selection fits behind it": (
        "bert bert-generation big_bird camembert data2vec-text electra ernie openai-gpt rembert "
        "roberta roc_bert roformer xlm xlm-roberta xlnet xmod"
    ),
    "its head has layers of its own before the logits": (
        "megatron-bert modernbert-decoder roberta-prelayernorm xlm-roberta-xl"
    ),
    "its blocks have inputs of their own, or take over the keys and values of others": (
        "gemma3n_text gemma4_assistant gemma4_unified_assistant"
    ),
    "a norm inside its MLP sees all intermediate dimensions": "bitnet dory",
    "its attention adds the residual stream itself": "bloom cpmant",
    "its attention takes its input more than once": "ctrl",
    "its attention gives its bias apart from its output": "gpt_neox_japanese",
    "its blocks run several times": "hrm_text",
    "it has blocks for bytes and for patches of them": "blt",
    "its blocks have two residual streams": "reformer",
    "Llama's classes under a configuration of its own": "exaone internlm3 iquestcoder",
}

WHY_NOT = {
    model_type: reason for reason, types in _TYPES_OF.items() for model_type in types.split()
}
"""The reason by `model_type`."""
