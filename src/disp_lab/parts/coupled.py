"""KV heads and intermediate channels: what is pruned where the residual stream keeps its width.

N entries of all sites, H KV heads, F intermediate, Q inputs of the attention's write.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.errors import InputError
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import BlockShape, head_ranges
from disp_llm.models.family import Branch


def flat_of(
    layout: Layout, channels: list[Float[Tensor, " F"]], heads: list[Float[Tensor, " _"]]
) -> Float[Tensor, " N"]:
    """Numbers of every block's channels and heads, of which blocks may have other numbers, in the
    order of the flat vector; 1 elsewhere."""
    parts = []
    for shape, of_channels, of_heads in zip(layout.blocks, channels, heads, strict=True):
        stream = of_channels.new_ones(shape.hidden)
        parts += [stream, stream, stream, of_channels, stream]
        if shape.heads:
            parts.append(of_heads.to(stream))
    return torch.cat(parts).float()


def by_head(columns: Float[Tensor, " Q"], heads: int) -> Float[Tensor, " H"]:
    """The sum of every head's columns; nothing where heads are no site."""
    return columns.view(heads, -1).sum(1) if heads else columns.new_zeros(0)


def row_ranges(
    block: nn.Module, branch: Branch, path: str, rows: Float[Tensor, " O"]
) -> tuple[Float[Tensor, " Q"], ...]:
    """What belongs to the outputs of a layer that reads, in ranges that lie head by head or
    channel by channel."""
    widths = head_ranges(block, branch, path, len(rows))
    return tuple(part for one in rows.split(widths) for part in one.chunk(branch.fused))


@dataclass(frozen=True)
class Sizes:
    """What one block keeps."""

    heads: int
    channels: int


def sizes_of(shape: BlockShape, share: float) -> Sizes:
    """What a block keeps of a share: it loses as many heads as fit wholly into what is pruned, and
    the channels that the rest of its budget has no room for.

    Raises:
        InputError: no channel would be kept.
    """
    heads = max(shape.heads - int((1 - share) * shape.heads + 1e-9), min(shape.heads, 1))
    channels = channels_within(shape, share, heads)
    if channels < 1:
        raise InputError("leaves no intermediate channel", field="keep", hint="ask for more")
    return Sizes(heads, min(channels, shape.intermediate))


def channels_within(shape: BlockShape, share: float, heads: int, blocks: int = 1) -> int:
    """Channels that a share of the parameters of some blocks, all alike, has room for beside so
    many of their KV heads, whole ones and all blocks together; less than 0 where heads alone are
    too much."""
    of_attention = shape.hidden * (shape.qkv + shape.q)
    of_channel = (shape.num_input_projections + 1) * shape.hidden
    budget = share * (of_attention + shape.inside + shape.intermediate * of_channel)
    attention = of_attention * (heads / shape.heads if shape.heads else blocks)
    return int((blocks * (budget - shape.inside) - attention) / of_channel + 1e-9)


def top_k(scores: Float[Tensor, " K"], count: int) -> Float[Tensor, " K"]:
    """Ranks from 1 (best) down to nearly 0, with 1 added for the `count` best: a threshold of 1
    keeps exactly these."""
    places = scores.argsort(descending=True, stable=True).argsort()
    kept = (places < count).double()
    return 1 - places.double() / max(len(scores), 1) + kept
