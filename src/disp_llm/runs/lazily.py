"""Safetensors files that are written tensor by tensor, so that one at a time is in memory.

The files are, byte for byte, what `safetensors.torch.save_file` writes of the same tensors.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

ORDER = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}
"""Data types in the order in which tensors of them lie in a file, with the names that it gives."""

ALIGNED = 8
"""Bytes that the header is filled up to a multiple of."""


def write_lazily(
    path: Path,
    shapes: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    metadata: dict[str, str],
) -> None:
    """Writes a file of tensors, each of which is made when its turn comes.

    Args:
        shapes: shape and data type of every tensor; they may lie on the meta device.
        make: gives a tensor by its name.
    """
    types = list(ORDER)
    names = sorted(shapes, key=lambda name: (types.index(shapes[name].dtype), name))
    with path.open("wb") as file:
        file.write(_header({name: shapes[name] for name in names}, metadata))
        for name in names:
            tensor, like = make(name), shapes[name]
            found, wanted = (tensor.shape, tensor.dtype), (like.shape, like.dtype)
            assert found == wanted, (name, found, wanted)
            flat = tensor.detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _header(shapes: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Length and JSON of what a file holds, of tensors in their order."""
    held: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, like in shapes.items():
        begin, end = end, end + like.numel() * like.element_size()
        held[name] = {
            "dtype": ORDER[like.dtype],
            "shape": list(like.shape),
            "data_offsets": [begin, end],
        }
    said = json.dumps(held, separators=(",", ":"), ensure_ascii=False).encode()
    said += b" " * (-len(said) % ALIGNED)
    return len(said).to_bytes(8, "little") + said
