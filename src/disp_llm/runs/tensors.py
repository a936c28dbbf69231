"""Files of tensors -> tensors of the data type and shape that are expected, or one line that says
what is damaged."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from disp_llm.config.errors import InputError


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds; all complaints about it name the file and what to do."""

    path: Path
    hint: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def require(self, sound: bool, what: str) -> None:
        """Refuses the file unless it is sound.

        Raises:
            InputError: it is not.
        """
        if not sound:
            raise InputError(f"is damaged ({what})", field=str(self.path), hint=self.hint)

    def like(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        finite: bool = True,
    ) -> Tensor:
        """The tensor of a name, which has this shape and data type and, unless it need not be
        `finite`, no infinity or NaN.
        """
        self.require(name in self.tensors, f"there is no {name}")
        tensor = self.tensors[name]
        found, wanted = f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape}"
        self.require(found == wanted, f"{name} is {found}, not {wanted}")
        self.require(not finite or bool(tensor.isfinite().all()), f"{name} is not finite")
        return tensor


def read_tensors(path: Path, hint: str) -> TensorFile:
    """All tensors of a file."""
    with opened(path, hint) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return TensorFile(path, hint, tensors, file.metadata() or {})


@contextlib.contextmanager
def opened(path: Path, hint: str) -> Iterator[Any]:
    """A safetensors file, of which nothing but what is asked for is read.

    Raises:
        InputError: it cannot be read; `hint` says what to do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read ({error})", field=str(path), hint=hint) from error
