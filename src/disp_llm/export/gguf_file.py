"""A folder whose blocks differ in their intermediate width, or lack a branch -> a GGUF file for
llama.cpp.

No graph of llama.cpp selects dimensions of the residual stream, so `prune --sites mlp_mid`, or
`mlp_mid attention mlp`, must have left these alone. What llama.cpp knows is Llama's graph with an
intermediate width a block and blocks without attention, under the architecture name `deci`; where
nothing differs it is plain `llama`. Of a block without an MLP it would leave out the attention too,
so that an MLP of zeros takes its place, the narrowest that it can store. Vocabulary,
rotary settings and the embedding come from a GGUF file of the original model; everything in the
blocks comes from the folder, whose attention and norms `recover` may have trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from disp_llm.config.errors import InputError
from disp_llm.config.gguf import GgufConfig
from disp_llm.config.names import ATTENTION, MLP
from disp_llm.export.belongings import is_place
from disp_llm.export.plain import EXPORT_AGAIN, intermediate_only
from disp_llm.models.architectures import PRUNED_PREFIX
from disp_llm.runs.files import atomic
from disp_llm.runs.tensors import read_tensors

NATIVE, VARIABLE = "llama", "deci"
"""The architecture of equal widths, and that of widths that differ."""

NARROWEST = 32
"""Width of the MLP of zeros that stands for none: rows of 32 numbers can also be quantised."""

HEADS_OF = {"attn_q": "head_count", "attn_k": "head_count_kv"}
"""Weights whose rows llama.cpp wants in its own order: rotary pairs side by side."""

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
    blocks = _blocks(config.folder)
    widths = [block.intermediate for block in blocks]
    reader = _original(config.original, len(blocks))
    weights = _weights(config.folder, reader, len(blocks))
    hidden = reader.fields[f"{NATIVE}.embedding_length"].contents()
    architecture = NATIVE if len(set(blocks)) == 1 else VARIABLE
    with atomic(config.to) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        _copy_keys(reader, writer, blocks)
        for tensor in reader.tensors:
            if not _is_there(tensor.name, blocks):
                continue
            values = _zeros(tensor.name, blocks, hidden)
            if tensor.name in weights:
                values = weights[tensor.name].float().numpy()
            elif values is None:
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
        "intermediate_widths": widths,
    }


@dataclass(frozen=True)
class Block:
    """What one block of the file has."""

    attention: bool
    mlp: bool
    intermediate: int
    """Width inside its MLP; `NARROWEST` in place of none."""


def _blocks(folder: Path) -> list[Block]:
    """What every block of the folder has."""
    stated, widths = intermediate_only(folder, "folder")
    if stated["model_type"] != PRUNED_PREFIX + NATIVE:
        raise InputError(
            f"{stated['model_type'].removeprefix(PRUNED_PREFIX)} models have no such layout in "
            "llama.cpp",
            field="folder",
            hint="serve this one with vLLM or transformers",
        )
    sites = zip(widths[ATTENTION], widths[MLP], widths["mlp_mid"], strict=True)
    return [Block(bool(kept), bool(mlp), width or NARROWEST) for kept, mlp, width in sites]


def _is_there(name: str, blocks: list[Block]) -> bool:
    """Whether a tensor of the original is in the file: an attention that is gone, and its norm, are
    not."""
    kind, number, part, *_ = [*name.split("."), "", ""]
    return kind != "blk" or not part.startswith("attn_") or blocks[int(number)].attention


def _zeros(name: str, blocks: list[Block], hidden: int) -> np.ndarray | None:
    """The weights of an MLP that adds nothing, where the block has none; None for other tensors."""
    kind, number, part, *_ = [*name.split("."), "", ""]
    if kind != "blk" or part not in ("ffn_gate", "ffn_up", "ffn_down") or blocks[int(number)].mlp:
        return None
    shape = (hidden, NARROWEST) if part == "ffn_down" else (NARROWEST, hidden)
    return np.zeros(shape, dtype=np.float32)


def _weights(folder: Path, reader: gguf.GGUFReader, blocks: int) -> dict[str, torch.Tensor]:
    """Parameters of the folder's blocks and last norm, under llama.cpp's names and with rows in its
    order.

    Raises:
        InputError: a shape outside the MLPs is not the original's.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        for own, tensor in read_tensors(path, EXPORT_AGAIN).tensors.items():
            name = names.get_name(own, try_suffixes=(".weight", ".bias")) or own
            if not name.startswith(("blk.", "output_norm.")):
                continue
            if "ffn_" not in name and shapes.get(name) != tuple(tensor.shape):
                raise InputError(
                    f"{own} of the folder is not of the original's shape",
                    field="original",
                    hint="name a GGUF file of the model that was pruned",
                )
            part = name.split(".")[2] if name.startswith("blk.") else ""
            if part in HEADS_OF:
                heads = _heads(reader, HEADS_OF[part])
                halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
            found[name] = tensor
    return found


def _heads(reader: gguf.GGUFReader, key: str) -> int:
    """Number of heads of queries or keys; a file names only the first where they are equal."""
    fields = (reader.fields.get(f"{NATIVE}.attention.{name}") for name in (key, "head_count"))
    return next(field.contents() for field in fields if field is not None)


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
            hint="name a GGUF file of the model that was pruned",
        )
    return reader


def _copy_keys(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, blocks: list[Block]) -> None:
    """Copies the original's keys, under the new architecture's name and without somebody's paths;
    those of widths and heads become a list, one a block, where blocks differ."""
    by_block = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", QUANTISING)) or field.name in OWN_KEYS:
            continue
        prefix, _, rest = field.name.partition(".")
        value, kind = field.contents(), field.types[0]
        if field.name.startswith(ABOUT) and is_place(value):
            continue
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        name = f"{writer.arch}.{rest}" if prefix == NATIVE else field.name
        if prefix == NATIVE and rest in by_block:
            if rest == "feed_forward_length":
                value = [block.intermediate for block in blocks]
            else:
                value = [value * block.attention for block in blocks]
            if writer.arch == NATIVE:
                value = value[0]
            else:
                kind, inner = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        writer.add_key_value(name, value, kind, inner)
