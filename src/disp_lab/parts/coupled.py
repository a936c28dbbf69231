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
    """Puts one number per channel and head into the order of the flat vector, with 1 elsewhere.
    Blocks may differ in their numbers of channels and heads."""
    parts = []
    for shape, of_channels, of_heads in zip(layout.blocks, channels, heads, strict=True):
        stream = of_channels.new_ones(shape.hidden)
        parts += [stream, stream, stream, of_channels, stream]
        if shape.heads:
            parts.append(of_heads.to(stream))
    return torch.cat(parts).float()


def by_head(columns: Float[Tensor, " Q"], heads: int) -> Float[Tensor, " H"]:
    """Sums the columns of each head; empty if heads are not a site."""
    return columns.view(heads, -1).sum(1) if heads else columns.new_zeros(0)


def row_ranges(
    block: nn.Module, branch: Branch, path: str, rows: Float[Tensor, " O"]
) -> tuple[Float[Tensor, " Q"], ...]:
    """Splits one number per output of a reading layer into ranges, each laid out head by head or
    channel by channel."""
    widths = head_ranges(block, branch, path, len(rows))
    return tuple(part for one in rows.split(widths) for part in one.chunk(branch.fused))


@dataclass(frozen=True)
class Sizes:
    """Numbers of KV heads and channels that one block keeps."""

    heads: int
    channels: int


def sizes_of(shape: BlockShape, share: float) -> Sizes:
    """Returns what a block keeps at a share. It loses as many whole heads as the pruned share
    holds, but not the last one, and the channels that the rest of its budget has no room for.

    Raises:
        InputError: no channel would be kept.
    """
    heads = max(shape.heads - int((1 - share) * shape.heads + 1e-9), min(shape.heads, 1))
    channels = channels_within(shape, share, heads)
    if channels < 1:
        raise InputError("leaves no intermediate channel", field="keep", hint="ask for more")
    return Sizes(heads, min(channels, shape.intermediate))


def channels_within(shape: BlockShape, share: float, heads: int, blocks: int = 1) -> int:
    """Returns how many channels fit into a share of the parameters of equal blocks, beside their
    kept KV heads. Both are counted over all blocks together. The result is 0 or less if the heads
    leave no room."""
    of_attention = shape.hidden * (shape.qkv + shape.q)
    of_channel = (shape.num_input_projections + 1) * shape.hidden
    budget = share * (of_attention + shape.inside + shape.intermediate * of_channel)
    attention = of_attention * (heads / shape.heads if shape.heads else blocks)
    return int((blocks * (budget - shape.inside) - attention) / of_channel + 1e-9)


def top_k(scores: Float[Tensor, " K"], count: int) -> Float[Tensor, " K"]:
    """Returns ranks from 1 (best) down to nearly 0, with 1 added to the `count` best: a threshold
    of 1 keeps exactly these."""
    places = scores.argsort(descending=True, stable=True).argsort()
    kept = (places < count).double()
    return 1 - places.double() / max(len(scores), 1) + kept
