"""Writes a GGUF file for llama.cpp: a Llama whose blocks differ in width or heads or lack a branch.

No graph of llama.cpp selects dimensions of the residual stream, so these have to be whole, as after
`prune --sites mlp_mid heads` or `mlp_mid heads attention mlp`. The architecture `deci` is Llama's
graph with an intermediate width and numbers of heads for each block, 0 for a block without
attention; if all blocks are equal, plain `llama` is written. llama.cpp would skip the attention of
a block without an MLP too, so an MLP of zeros, the narrowest that it can store, takes its place.
The file states the width of a head, since the first block may have lost heads. (llama.cpp ignores
the width if the first block has no attention; but the first attention is never pruned.)
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, HEADS, MLP
from disp_llm.data.windows import usual_bos
from disp_llm.exporter.exported import exported_config, has_experts
from disp_llm.exporter.formats import Job, share_card
from disp_llm.exporter.formats.plain import whole_stream
from disp_llm.models.architectures import PRUNED_PREFIX
from disp_llm.models.files import weight_files
from disp_llm.models.loading import load_config, load_tokenizer
from disp_llm.models.vocabulary import SPACE
from disp_llm.runs.files import read_json
from disp_llm.runs.sums import CHANGED_FOLDER
from disp_llm.runs.tensors import read_tensors

FILE = "model.gguf"

NATIVE, VARIABLE = "llama", "deci"
"""Architectures of equal blocks and of blocks that differ."""

NARROWEST = 32
"""Width of the MLP of zeros in place of a missing one: rows of 32 numbers can also be quantised."""

ROTATED = ("attn_q", "attn_k")
"""Weights whose rows llama.cpp orders differently: rotary pairs side by side."""

BY_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression by which Llama 3 splits text."""

WORDS, BYTES = {"type": "ByteLevel", "use_regex": True}, {"type": "ByteLevel", "use_regex": False}

SPLITTERS = {
    "gpt-2": [WORDS],
    "smollm": [{"type": "Digits", "individual_digits": True}, WORDS],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": BY_WORDS}}, BYTES],
}
"""Steps by which a byte-level tokenizer splits text before it merges, by llama.cpp's name."""

MARKS = {"Prepend", "Replace"}
"""Types of normalizers by which tokenizers with byte fallback mark spaces, as llama.cpp does."""

Block = tuple[int, int, int]
"""Numbers of query heads and KV heads of a block, and its intermediate width; 0 without attention
or MLP."""


def check(folder: Path) -> None:
    """Refuses architectures other than Llama, a cut residual stream, and unknown tokenizers."""
    stated, wrong = exported_config(folder), ""
    kind = stated["model_type"].removeprefix(PRUNED_PREFIX)
    if has_experts(stated):
        wrong = "is a mixture of experts"
    elif stated.get("quantization_config"):
        wrong = "is quantised, and its weights are no numbers by themselves"
    elif kind != NATIVE:
        wrong = f"{kind} models have no such layout in llama.cpp"
    else:
        config: Any = load_config(str(folder))
        rope = config.rope_parameters["rope_type"]
        if rope not in ("default", "linear", "llama3"):
            wrong = f"has rotary embeddings of the type {rope}"
        elif config.hidden_act not in ("silu", "swish"):
            wrong = f"has the activation {config.hidden_act}, and llama.cpp's Llama has silu"
    if wrong:
        raise InputError(wrong, field="folder", hint="serve it with vLLM or transformers")
    whole_stream(folder, "--for llama.cpp")
    splitter_of(read_json(folder / "tokenizer.json", CHANGED_FOLDER))


def write(job: Job) -> None:
    """Writes the GGUF file and the card."""
    path = job.new / FILE
    write_file(job.folder, path, job.place)
    share_card(job, "gguf", path.stat().st_size)


def write_file(folder: Path, path: Path, name: str = "") -> None:
    """Writes an exported folder as a GGUF file, in which the model has this name."""
    _, widths = whole_stream(folder, "--for llama.cpp")
    config: Any = load_config(str(folder))
    blocks = _blocks(widths, config)
    writer = gguf.GGUFWriter(path, NATIVE if len(set(blocks)) == 1 else VARIABLE)
    _write_sizes(writer, config, blocks)
    _write_vocabulary(writer, folder, config.vocab_size)
    writer.add_name(name)
    for own, tensor in _tensors(folder, config, blocks).items():
        half = gguf.GGMLQuantizationType.BF16
        if tensor.dtype != torch.bfloat16:
            half = gguf.GGMLQuantizationType.F16
        kind = half if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
        values = np.ascontiguousarray(tensor.float().numpy())
        writer.add_tensor(own, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(widths: dict[str, list[int]], config: Any) -> list[Block]:
    kv_heads, width = config.num_key_value_heads, widths["mlp_mid"]
    queries = config.num_attention_heads // kv_heads
    kept = widths.get(HEADS, [kv_heads] * len(width))
    sites = zip(widths[ATTENTION], kept, widths[MLP], width, strict=True)
    return [(attn * kv * queries, attn * kv, mlp * inside) for attn, kv, mlp, inside in sites]


def _write_sizes(writer: gguf.GGUFWriter, config: Any, blocks: list[Block]) -> None:
    """Writes the sizes of llama.cpp's graph; if blocks differ, as lists with a number per block."""
    heads, kv_heads, widths = zip(*blocks, strict=True)
    by_block = (
        (writer.add_feed_forward_length, [width or NARROWEST for width in widths]),
        (writer.add_head_count, list(heads)),
        (writer.add_head_count_kv, list(kv_heads)),
    )
    for add, numbers in by_block:
        add(numbers if writer.arch == VARIABLE else numbers[0])
    writer.add_block_count(len(blocks))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _tensors(folder: Path, config: Any, blocks: list[Block]) -> dict[str, Tensor]:
    """Returns the folder's tensors under llama.cpp's names, with rows in its order."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(blocks))
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for own, tensor in read_tensors(path, CHANGED_FOLDER).tensors.items():
            name = names.get_name(own, try_suffixes=(".weight", ".bias"))
            assert name is not None, f"{own} is no tensor of a Llama"
            part = name.split(".")[-2]
            if part in ROTATED:
                halves = tensor.view(-1, 2, config.head_dim // 2, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
            found[name] = tensor
    for index, (_, _, width) in enumerate(blocks):
        if not width:
            found |= _empty_mlp(f"blk.{index}", found["token_embd.weight"], config.mlp_bias)
    if config.rope_parameters["rope_type"] == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        powers = torch.arange(0, config.head_dim, 2) / config.head_dim
        usual = config.rope_parameters["rope_theta"] ** -powers
        found["rope_freqs.weight"] = usual / scaled  # llama.cpp divides frequencies by it
    return found


def _empty_mlp(block: str, embedding: Tensor, biased: bool) -> dict[str, Tensor]:
    """Returns the tensors of an MLP of zeros, with its norm."""
    width = embedding.shape[1]
    shapes = {"ffn_gate": (NARROWEST, width), "ffn_up": (NARROWEST, width)}
    shapes |= {"ffn_down": (width, NARROWEST)}
    made = {f"{block}.ffn_norm.weight": embedding.new_ones(width)}
    for part, shape in shapes.items():
        made[f"{block}.{part}.weight"] = embedding.new_zeros(shape)
        if biased:
            made[f"{block}.{part}.bias"] = embedding.new_zeros(shape[0])
    return made


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Writes tokens, merges, special tokens and chat template of the folder's tokenizer."""
    tokenizer: Any = load_tokenizer(str(folder))
    stated = read_json(folder / "tokenizer.json", CHANGED_FOLDER)
    splitter = splitter_of(stated)
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds, tokens = gguf.TokenType, []
    for number in range(size):
        kind = kinds.NORMAL if number in words else kinds.UNUSED
        if number in added:
            kind = kinds.CONTROL if added[number].special else kinds.USER_DEFINED
        elif splitter == "" and words.get(number, "").startswith("<0x"):
            kind = kinds.BYTE
        tokens.append((words.get(number, f"[PAD{number}]"), kind))
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_tokenizer_model("gpt2" if splitter else "llama")
    writer.add_tokenizer_pre(splitter or "default")
    if not splitter:
        writer.add_token_scores([-float(number) for number in range(size)])
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith(SPACE))
    special = gguf.SpecialVocab(folder, load_merges=bool(splitter), n_vocab=size)
    # By default llama.cpp puts BOS before the text for some kinds of tokenizers.
    special.add_special_token["bos"] = usual_bos(tokenizer) is not None
    special.add_to_gguf(writer, True)


def splitter_of(tokenizer: dict[str, Any]) -> str:
    """Returns llama.cpp's name for how a byte-level tokenizer splits text; empty for one that falls
    back to bytes, such as Llama 2's. Refuses other tokenizers, and those that change text."""
    model, before = tokenizer.get("model", {}), tokenizer.get("pre_tokenizer") or {}
    normalizer = tokenizer.get("normalizer") or {"normalizers": []}
    changes = {one.get("type") for one in normalizer.get("normalizers", [normalizer])}
    if model.get("type") == "BPE" and model.get("byte_fallback") and changes <= MARKS:
        return ""
    steps = before.get("pretokenizers", [before])
    bare = not changes and not any(step.get("add_prefix_space") for step in steps)
    if model.get("type") == "BPE" and bare:
        for name, known in SPLITTERS.items():
            shown = [
                {key: step.get(key) for key in of} for step, of in zip(steps, known, strict=False)
            ]
            if len(steps) == len(known) and shown == known:
                return name
    raise InputError(
        "has a tokenizer whose name in llama.cpp is not known",
        field="folder",
        hint="serve it with vLLM or transformers",
    )
