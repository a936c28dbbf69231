"""Text that a model writes, always taking the likeliest token."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@contextlib.contextmanager
def likeliest(model: PreTrainedModel) -> Iterator[Any]:
    """While the context lasts, `generate`, which this gives, takes the likeliest token: a model may
    come with penalties, beams and tokens that it must not write, which `do_sample=False` leaves as
    they are, as do settings that are handed to `generate`."""
    own: Any = model.generation_config
    ends = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    try:
        yield model.generate
    finally:
        model.generation_config = own


def left_padded(
    rows: Sequence[Sequence[int] | Tensor], device: torch.device
) -> tuple[Int[Tensor, "R T"], Int[Tensor, "R T"]]:
    """Tokens of rows that all end together, behind zeros, and 1 where there is a token."""
    width = max(map(len, rows))
    tokens, seen = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = torch.as_tensor(row)
        seen[number, width - len(row) :] = 1
    return tokens.to(device), seen.to(device)
