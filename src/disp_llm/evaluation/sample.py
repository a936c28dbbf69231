"""Greedy decoding, and left-padding of prompts."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@contextlib.contextmanager
def likeliest(model: PreTrainedModel) -> Iterator[Any]:
    """Yields the model's `generate`, which decodes greedily while the context lasts. For that it
    replaces the generation config: neither `do_sample=False` nor other arguments of `generate`
    switch off the penalties, beams and forbidden tokens that a model may come with."""
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
    """Returns the rows, left-padded with zeros, and their attention mask."""
    width = max(map(len, rows))
    tokens, seen = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = torch.as_tensor(row)
        seen[number, width - len(row) :] = 1
    return tokens.to(device), seen.to(device)
