"""Writes the configuration of Nemotron-NAS (DeciLM), whose blocks differ. vLLM, SGLang,
TensorRT-LLM and mlx-lm each implement this model.

It is Llama's graph with an intermediate width for each block, and blocks may lack attention or MLP.
The configuration states a width as a multiple of the residual stream's. Engines round the product
up to a multiple of 256, so only such widths are possible. All blocks have the same number and width
of heads. The weights have Llama's names and are taken over unchanged.

A Python file travels along: transformers has no such configuration, and vLLM and SGLang load it
through transformers. mlx-lm reads the JSON by itself.
"""

import shutil
from pathlib import Path
from typing import Any

from disp_llm.compact import CODE
from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, HEADS, MLP
from disp_llm.exporter.exported import exported_config, has_experts
from disp_llm.exporter.formats import Job, share_card
from disp_llm.exporter.formats.plain import OURS, whole_stream
from disp_llm.models.architectures import PRUNED_PREFIX
from disp_llm.models.loading import load_config
from disp_llm.runs.files import write_json

STEP = 256
"""All intermediate widths are multiples of it."""

READER = Path(__file__).parent / "configuration_decilm.py"
"""File of the configuration class."""

LLAMAS = ("llama", "mistral")
"""Architectures with Llama's graph."""


def check(folder: Path) -> None:
    """Refuses graphs and activations other than Llama's, quantised models, and widths or heads that
    the configuration cannot state."""
    stated, wrong = exported_config(folder), ""
    kind = stated["model_type"].removeprefix(PRUNED_PREFIX)
    config: Any = load_config(str(folder))
    if has_experts(stated) or kind not in LLAMAS or getattr(config, "sliding_window", None):
        wrong = f"{kind} models, or these blocks of theirs, have another graph than Llama's"
    elif stated.get("quantization_config"):
        wrong = "is quantised"
    elif config.head_dim * config.num_attention_heads != config.hidden_size:
        wrong = "heads are not as wide as the stream divided by their number"
    elif config.hidden_act != "silu":
        wrong = f"has the activation {config.hidden_act}, and vLLM's Llama has silu alone"
    if wrong:
        raise InputError(wrong, field="folder", hint="serve it with vLLM or transformers")
    _, widths = whole_stream(folder, "--for nemotron-nas")
    if HEADS in widths and set(widths[HEADS]) != {config.num_key_value_heads}:
        raise InputError("heads are cut", field="to", hint="prune with --for nemotron-nas")
    there = zip(widths["mlp_mid"], widths[MLP], strict=True)
    if any(width % STEP for width, mlp in there if mlp):
        raise InputError(
            f"widths are no multiples of {STEP}", field="to", hint="prune with --for nemotron-nas"
        )


def write(job: Job) -> None:
    """Takes over weights and tokenizer, and writes the configuration of the blocks."""
    stated, widths = whole_stream(job.folder, "--for nemotron-nas")
    config: Any = load_config(str(job.folder))
    group = config.num_attention_heads // config.num_key_value_heads
    sites = zip(widths[ATTENTION], widths[MLP], widths["mlp_mid"], strict=True)
    blocks = [
        {
            "attention": {"no_op": not attention, "n_heads_in_group": group if attention else None},
            "ffn": {"no_op": not mlp, "ffn_mult": multiple(width, config) if mlp else None},
        }
        for attention, mlp, width in sites
    ]
    shared = {key: value for key, value in stated.items() if key not in OURS}
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    named = {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{READER.stem}.DeciLMConfig"},
        "block_configs": blocks,
        "rope_theta": theta,  # how mlx-lm names it
        "rope_scaling": rope if rope["rope_type"] != "default" else None,
    }
    job.take("config.json", *CODE)
    write_json(job.new / "config.json", shared | named)
    shutil.copyfile(READER, job.new / READER.name)
    share_card(job, "nemotron-nas")


def multiple(width: int, config: Any) -> float:
    """Returns the `ffn_mult` for an intermediate width: engines take 2/3 of it times the hidden
    size, rounded up to a multiple of 256 (`_ffn_mult_to_intermediate_size` of vLLM 0.32, SGLang 0.5
    and mlx-lm 0.32, which keeps six digits)."""
    return round(1.5 * width / config.hidden_size, 6)
