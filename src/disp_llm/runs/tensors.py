"""Safetensors files: written whole or tensor by tensor, read, and checked."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic

ORDER = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}
"""Data types in the order in which a file holds their tensors, with their names in the file."""


def write_tensors(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file; tensors must be contiguous."""
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def write_lazily(
    path: Path,
    shapes: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    metadata: dict[str, str],
) -> None:
    """Writes the same bytes as `save_file`, with one tensor at a time in memory.

    Args:
        shapes: shape and data type of every tensor; they may lie on the meta device.
        make: returns a tensor by its name, when its turn comes.
    """
    types = list(ORDER)
    names = sorted(shapes, key=lambda name: (types.index(shapes[name].dtype), name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        like = shapes[name]
        begin, end = end, end + like.numel() * like.element_size()
        place = {"shape": list(like.shape), "data_offsets": [begin, end]}
        header[name] = {"dtype": ORDER[like.dtype], **place}
    said = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)  # data begin at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for name in names:
            tensor, like = make(name), shapes[name]
            assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype), name
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def tensors_sha256(tensors: dict[str, Tensor], floats: torch.dtype | None = None) -> str:
    """Returns the SHA-256 of names, data types, shapes and numbers of tensors. Floating-point
    numbers count as they are, or in the data type `floats`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_floating_point():
            tensor = tensor.to(floats or tensor.dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def behind(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with this prefix, keyed by the rest of their names."""
    named = tensors.items()
    return {name.removeprefix(prefix): one for name, one in named if name.startswith(prefix)}


@dataclass(frozen=True)
class TensorFile:
    """Contents of a safetensors file; all errors about it name the file and what to do."""

    path: Path
    hint: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def require(self, sound: bool, what: str) -> None:
        """Refuses the file unless it is sound."""
        if not sound:
            raise InputError(f"is damaged ({what})", field=str(self.path), hint=self.hint)

    def like(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        finite: bool = True,
    ) -> Tensor:
        """Returns a tensor by name. Refuses another shape or data type and, if it must be `finite`,
        infinity and NaN."""
        self.require(name in self.tensors, f"there is no {name}")
        tensor = self.tensors[name]
        found, wanted = f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape}"
        self.require(found == wanted, f"{name} is {found}, not {wanted}")
        self.require(not finite or bool(tensor.isfinite().all()), f"{name} is not finite")
        return tensor


def read_tensors(path: Path, hint: str, only: str = "") -> TensorFile:
    """Reads all tensors of a file, or the one named `only` if it is there."""
    with opened(path, hint) as file:
        names = {*file.keys()} & {only} if only else file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        return TensorFile(path, hint, tensors, file.metadata() or {})


@contextlib.contextmanager
def opened(path: Path, hint: str) -> Iterator[Any]:
    """Opens a safetensors file, of which only what is asked for is read; `hint` says what to do if
    that fails."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read ({error})", field=str(path), hint=hint) from error
