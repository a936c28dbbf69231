"""A folder whose blocks differ in their intermediate width or number of heads, or lack a branch ->
a GGUF file for llama.cpp.

No graph of llama.cpp selects dimensions of the residual stream, so `prune --sites mlp_mid heads`,
or `mlp_mid heads attention mlp`, must have left these alone. What llama.cpp knows is Llama's graph
with an intermediate width, a number of heads and one of KV heads for each block, 0 for a block
without attention, under the architecture name `deci`; where nothing differs it is plain `llama`. Of
a block without an MLP it would leave out the attention too, so that an MLP of zeros takes its
place, the narrowest that it can store. How wide a head is, the file has to say, for the first block
may have lost heads. (Of a first block without any llama.cpp would not read it; but the first
attention is never pruned.) Vocabulary, rotary settings and the embedding come from a GGUF file of
the original model; everything in the blocks comes from the folder, whose attention and norms
`recover` may have trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from disp_llm.config.errors import InputError
from disp_llm.config.gguf import GgufConfig
from disp_llm.config.names import ATTENTION, HEADS, MLP
from disp_llm.config.schema import Size, as_type
from disp_llm.export.plain import EXPORT_AGAIN, whole_stream
from disp_llm.export.stripping import is_private
from disp_llm.models.architectures import PRUNED_PREFIX
from disp_llm.models.files import weight_files
from disp_llm.runs.lock import created
from disp_llm.runs.tensors import read_tensors

NATIVE, VARIABLE = "llama", "deci"
"""The architecture of equal blocks, and that of blocks that differ."""

NARROWEST = 32
"""Width of the MLP of zeros that stands for none: rows of 32 numbers can also be quantised."""

ROTATED = ("attn_q", "attn_k")
"""Weights whose rows llama.cpp wants in its own order: rotary pairs side by side."""

OUTPUTS = ("attn_output", "ffn_down")
"""Weights that a cut leaves fewer columns; the others have fewer rows, and their biases too."""

OF_MLP = ("ffn_gate", "ffn_up", "ffn_down")
"""What an MLP consists of."""

ANOTHER = "name a GGUF file of the model that was pruned"
"""What to do about an original that is none."""

OWN_KEYS = ("general.architecture", "general.file_type", "general.quantization_version")
"""Keys that are the new file's own."""

ABOUT, QUANTISING = "general.", "quantize."
"""How keys begin that say what a model is; and how the original's weights were quantised, from
which files of whom: not the new one's."""

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}


def write_gguf(config: GgufConfig) -> dict[str, Any]:
    """Writes the file `config.to`, whole or not at all.

    Raises:
        InputError: the format cannot hold the folder, the folder is not of the original's shape, or
            something lies at `config.to`.
    """
    config.validate()
    widths = _widths(config.folder)
    reader = _original(config.original, len(widths["mlp_mid"]))
    blocks = _blocks(widths, heads := _heads(reader))
    shapes = _shapes(reader, blocks, heads.width)
    weights = _weights(config.folder, shapes, blocks)
    architecture = NATIVE if len(set(blocks)) == 1 else VARIABLE
    with created(config.to, "to") as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        _write_keys(reader, writer, blocks, heads.width)
        for tensor in reader.tensors:
            block, part = _place(tensor.name, blocks)
            if block and not block.heads and part.startswith("attn_"):
                continue  # an attention that is gone, and its norm
            if block and not block.mlp and part in OF_MLP:
                values = np.zeros(shapes[tensor.name], dtype=np.float32)
            elif tensor.name in weights:
                values = weights[tensor.name].float().numpy()
            else:
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
            kind = TYPES[config.dtype if values.ndim > 1 else "f32"]
            packed = gguf.quantize(np.ascontiguousarray(values), kind)
            writer.add_tensor(tensor.name, packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return {
        "file": str(config.to),
        "architecture": architecture,
        "bytes": config.to.stat().st_size,
        "intermediate_widths": [block.intermediate for block in blocks],
        "kv_heads": [block.kv_heads for block in blocks],
    }


@dataclass(frozen=True)
class Heads:
    """The heads of every attention of the original."""

    queries: int
    kv: int
    """Heads of keys and values; as many queries read each of them."""
    width: int
    """Numbers in a head."""


@dataclass(frozen=True)
class Block:
    """What one block of the file has."""

    heads: int
    """Of queries; 0 where its attention is gone."""
    kv_heads: int
    mlp: bool
    intermediate: int
    """Width inside its MLP; `NARROWEST` in place of none."""


def _widths(folder: Path) -> dict[str, list[int]]:
    """What every block of the folder has left, by site."""
    stated, widths = whole_stream(folder, "folder")
    if stated["model_type"] != PRUNED_PREFIX + NATIVE:
        raise InputError(
            f"{stated['model_type'].removeprefix(PRUNED_PREFIX)} models have no such layout in "
            "llama.cpp",
            field="folder",
            hint="serve this one with vLLM or transformers",
        )
    return widths


def _heads(reader: gguf.GGUFReader) -> Heads:
    """What the original says of its heads; it names the KV heads and a width only where they do not
    follow from the others.

    Raises:
        InputError: it does not say how many there are.
    """

    def number(name: str, otherwise: int | None = None) -> int:
        stated = reader.fields.get(f"{NATIVE}.{name}")
        value = otherwise if stated is None else stated.contents()
        return as_type(value, Size, field="original", hint=ANOTHER, place=f"{NATIVE}.{name}")

    hidden, queries = number("embedding_length"), number("attention.head_count")
    kv = number("attention.head_count_kv", queries)
    return Heads(queries, kv, number("attention.key_length", hidden // queries))


def _blocks(widths: dict[str, list[int]], heads: Heads) -> list[Block]:
    """What every block of the file has."""
    kept = widths.get(HEADS, [heads.kv] * len(widths["mlp_mid"]))
    sites = zip(widths[ATTENTION], kept, widths[MLP], widths["mlp_mid"], strict=True)
    return [
        Block(
            heads=bool(attention) * kv * (heads.queries // heads.kv),
            kv_heads=bool(attention) * kv,
            mlp=bool(mlp),
            intermediate=width or NARROWEST,
        )
        for attention, kv, mlp, width in sites
    ]


def _place(name: str, blocks: list[Block]) -> tuple[Block | None, str]:
    """The block of a tensor, None if it lies in none, and which part of the block it is."""
    kind, number, part, *_ = [*name.split("."), "", ""]
    in_block = kind == "blk" and number in map(str, range(len(blocks)))
    return (blocks[int(number)], part) if in_block else (None, "")


def _shapes(reader: gguf.GGUFReader, blocks: list[Block], width: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the file: the original's, but for what is cut in its block.

    Args:
        width: of a head.
    """
    shapes = {}
    for tensor in reader.tensors:
        block, part = _place(tensor.name, blocks)
        shape = tuple(reversed(tensor.shape.tolist()))
        if block is not None:
            left = dict.fromkeys(("attn_q", "attn_output"), block.heads * width)
            left |= dict.fromkeys(("attn_k", "attn_v"), block.kv_heads * width)
            left |= dict.fromkeys(OF_MLP, block.intermediate)
            if part in OUTPUTS:
                shape = (*shape[:1], *(left[part] for _ in shape[1:]))
            elif part in left:
                shape = (left[part], *shape[1:])
        shapes[tensor.name] = shape
    return shapes


def _weights(
    folder: Path, shapes: dict[str, tuple[int, ...]], blocks: list[Block]
) -> dict[str, torch.Tensor]:
    """Parameters of the folder's blocks and last norm, under llama.cpp's names and with rows in its
    order.

    Raises:
        InputError: a shape is not what the original and the widths of its block make of it.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(blocks))
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        for own, tensor in read_tensors(path, EXPORT_AGAIN).tensors.items():
            name = names.get_name(own, try_suffixes=(".weight", ".bias")) or own
            if not name.startswith(("blk.", "output_norm.")):
                continue
            if shapes.get(name) != tuple(tensor.shape):
                raise InputError(
                    f"{own} of the folder is not of the shape that its cut leaves of the "
                    f"original's: {tuple(tensor.shape)} in place of {shapes.get(name, 'none')}",
                    field="original",
                    hint=ANOTHER,
                )
            block, part = _place(name, blocks)
            if block is not None and part in ROTATED:
                heads = block.heads if part == "attn_q" else block.kv_heads
                halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
            found[name] = tensor
    return found


def _original(path: Path, blocks: int) -> gguf.GGUFReader:
    """The original's file, which must have the folder's architecture and number of blocks.

    Raises:
        InputError: it cannot be read, or has not.
    """
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        architecture = values["general.architecture"]
    except (OSError, ValueError, LookupError, OverflowError) as error:  # of damaged files too
        raise InputError(
            f"cannot read {path} ({error})",
            field="original",
            hint="name a GGUF file of the original",
        ) from error
    stated = values.get(f"{architecture}.block_count", "unknown")
    if architecture != NATIVE or stated != blocks:
        raise InputError(
            f"{path} is a {architecture} model of {stated} blocks, "
            f"the folder a llama model of {blocks}",
            field="original",
            hint=ANOTHER,
        )
    return reader


def _write_keys(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, blocks: list[Block], width: int
) -> None:
    """Copies the original's keys, under the new architecture's name and without somebody's paths,
    and writes those of widths and heads: a list, one a block, where blocks differ.

    Args:
        width: of a head.
    """
    number, array = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.ARRAY
    by_block = {
        "feed_forward_length": [block.intermediate for block in blocks],
        "attention.head_count": [block.heads for block in blocks],
        "attention.head_count_kv": [block.kv_heads for block in blocks],
    }
    anew = {*by_block, "attention.key_length", "attention.value_length"}
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", QUANTISING)) or field.name in OWN_KEYS:
            continue
        prefix, _, rest = field.name.partition(".")
        if prefix == NATIVE and rest in anew:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name.startswith(ABOUT) and is_private(value):
            continue
        inner = field.types[-1] if kind == array else None
        name = f"{writer.arch}.{rest}" if prefix == NATIVE else field.name
        writer.add_key_value(name, value, kind, inner)
    for name, numbers in by_block.items():
        if writer.arch == NATIVE:
            writer.add_key_value(f"{NATIVE}.{name}", numbers[0], number)
        else:
            writer.add_key_value(f"{VARIABLE}.{name}", numbers, array, number)
    writer.add_key_length(width)
    writer.add_value_length(width)
