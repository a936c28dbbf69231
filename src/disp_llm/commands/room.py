"""How much of a model fits into a size: the bytes of each way to store it, and the predicted cost
of keeping a smaller share of its blocks."""

import math
from dataclasses import dataclass, replace
from typing import Any

from disp_llm.commands.planning import chunk_of, default_align
from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import Bits
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import BYTES, PARAMETERS, Target, fits_already, rounded
from disp_llm.masks.layout import CHUNKS
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.rounding import GROUP

HEADER = 256
"""Most bytes that a file of weights takes to name a tensor."""

INDEX = 8
"""Bytes of the index of a kept dimension."""


LEAST, MEAN, MOST = (0.672, 1.38), (0.975, 0.83), (1.270, 0.62)
"""a and b of `a·(1/keep − 1)^b`: the log of how many times the original's perplexity the default
came to at keep 0.8 and 0.5 of three models (experiments/results/models.md)."""


def expected_loss(keep: float, curve: tuple[float, float] = MEAN) -> float:
    """Returns the log ratio of perplexity to expect at a size. It only chooses between sizes that
    are then measured."""
    scale, power = curve
    return scale * (1 / keep - 1) ** power


def expected_range(keep: float) -> list[float]:
    """Returns the least and the most times the original's perplexity to expect at a size."""
    return [math.exp(expected_loss(keep, curve)) for curve in (LEAST, MOST)]


@dataclass(frozen=True)
class Bytes:
    """Bytes, or parameters, that one way to store a model takes, by part."""

    token: float
    """Bytes of each token that stays."""
    blocks: float
    """Bytes of all blocks; a smaller share of their parameters takes that share of them."""
    rest: float

    def keep(self, limit: float, tokens: int) -> float:
        """Returns the share of the blocks that fits into the limit, at most 1; 0 or less if none
        does."""
        return min((limit - self.rest - tokens * self.token) / self.blocks, 1.0)

    def tokens(self, limit: float) -> float:
        """Returns the number of tokens that leaves room for all blocks; below 0 if none does."""
        return (limit - self.rest - self.blocks) / self.token


def stored(target: PrunableModel, bits: Bits, itemsize: int) -> Bytes:
    """Returns what a model takes in so many bits.

    Args:
        itemsize: bytes of a number that is not quantised; 1 counts parameters.
    """
    rows, width = target.head_weight.shape
    tied = target.model.config.get_text_config().tie_word_embeddings
    ends = 1 if tied else 2
    weights, tensors = target.block_parameters, len(target.model.state_dict())
    outside = target.parameters - weights - ends * rows * width
    named = HEADER * tensors * (itemsize > 1)
    if bits == "as-is":
        return Bytes(itemsize * ends * width, itemsize * weights, itemsize * outside + named)
    outputs = sum(len(linear.weight) for linear in target.linears())
    row = ends * width + 2 * itemsize  # a tied matrix stores its scales twice
    if bits == "int8":
        return Bytes(row, weights, itemsize * (outside + outputs) + 2 * named)
    return Bytes(row, weights * (0.5 + itemsize / GROUP), itemsize * outside + 3 * named)


def index_bytes(target: PrunableModel, chunk: int) -> int:
    """Returns the most bytes that a file of weights takes to list, chunk by chunk, the
    residual-stream dimensions that the blocks read and write, and to name these lists."""
    said = next((size for size in CHUNKS if chunk % size == 0), 1)  # as folders store it
    numbers = tensors = 0
    for block, shape in zip(target.blocks, target.layout.blocks, strict=True):
        attention, mlp = target.branches_of(block)
        places = {
            "attn_in": attention.selects_in,
            "attn_out": attention.selects_out,
            "mlp_in": mlp.selects_in,
            "mlp_out": mlp.selects_out,
        }
        here = sum(len(paths) for site, paths in places.items() if site in target.sites)
        numbers, tensors = numbers + here * (shape.hidden // said), tensors + here
    return INDEX * numbers + HEADER * tensors


def possible_bits(config: PruneConfig, target: PrunableModel, align: int) -> tuple[Bits, ...]:
    """Returns the ways to store this model, of those asked for."""
    if config.budget.kind != "bytes":
        return ("as-is",)
    whole = target.usual_blocks and not target.family.tower
    widths = [align, *(width for linear in target.linears() for width in widths_of(linear))]
    for block, shape in zip(target.blocks, target.layout.blocks, strict=True):
        reads = target.branches_of(block)[0].reads
        inner = (shape.q, *(widths_of(linear_at(block, path))[1] for path in reads))
        widths += [width // shape.heads for width in inner if shape.heads]  # of what one head has
    grouped = not any(width % GROUP for width in widths)
    can = {"as-is": True, "int8": whole, "int4": whole and grouped}
    return tuple(bits for bits in config.bits if can[bits])


@dataclass(frozen=True)
class Room:
    """The size asked for, and what each way to store the model takes."""

    size: Target
    limit: float
    """Asked size in bytes or parameters."""
    dense: int
    """Size of the original."""
    ways: dict[Bits, Bytes]

    @classmethod
    def of(cls, config: PruneConfig, target: PrunableModel, itemsize: int) -> "Room":
        """Computes what the settings leave of a model.

        Args:
            itemsize: bytes of one of its numbers.

        Raises:
            InputError: the original already fits, or none of the asked `bits` can store the model.
        """
        size, counts = config.sizes[0], config.budget.kind == "total"
        itemsize = 1 if counts else itemsize
        dense = target.parameters * itemsize
        limit = size.value if size.unit else size.amount * dense
        if limit >= dense:
            raise fits_already(size, f"{dense:,} {PARAMETERS if counts else BYTES}")
        align = config.align or default_align(target)
        possible = possible_bits(config, target, align)
        if not possible:
            raise InputError(
                f"{' and '.join(config.bits)} cannot store this model",
                field="bits",
                hint=f"add as-is; int4 takes multiples of {GROUP} as widths (`align` {GROUP})",
            )
        chosen = 0 if counts else index_bytes(target, chunk_of(config, target, align))
        ways = {bits: stored(target, bits, itemsize) for bits in possible}
        ways = {bits: replace(way, rest=way.rest + chosen) for bits, way in ways.items()}
        return cls(size, limit, dense, ways)

    def keep(self, bits: Bits, tokens: int) -> float:
        """Returns the share of the blocks that fits, rounded down to four decimals."""
        return math.floor(1e4 * self.ways[bits].keep(self.limit, tokens)) / 1e4

    def require(self, least: float, tokens: int) -> None:
        """Refuses a size in which not even this share of the blocks fits with so many tokens."""
        if all(self.keep(bits, tokens) < least for bits in self.ways):
            raise self.too_small(least, tokens)

    def too_small(self, least: float, tokens: int) -> InputError:
        """Returns the error that nothing fits, not even this share of the blocks with so many
        tokens."""
        least = math.ceil(1e4 * least) / 1e4  # `keep` rounds down
        smallest = min(
            way.rest + least * way.blocks + tokens * way.token for way in self.ways.values()
        )
        if self.size.unit:
            said = self.size.like(smallest, at_least=True)
        else:
            said = str(rounded(smallest / self.dense, 2, up=True))
        return InputError(
            f"{self.size} is less than the smallest model, {said}",
            field="fit",
            hint="ask for more",
        )


def outlook(
    config: PruneConfig, target: PrunableModel, itemsize: int, least: float
) -> list[dict[str, Any]]:
    """Returns, for each way to store a model with all of its tokens, the share of its blocks that
    fits and the predicted perplexity ratio to the original, without the cost of rounding.

    Args:
        itemsize: bytes of one of its numbers.
        least: share of the blocks that the smallest model keeps.

    Raises:
        InputError: the smallest model does not fit, even without tokens.
    """
    room, rows = Room.of(config, target, itemsize), len(target.head_weight)
    room.require(least, tokens=0)
    keeps = {bits: room.keep(bits, rows) for bits in room.ways}
    return [
        {"bits": bits, "keep": keep, "expected": math.exp(expected_loss(keep))}
        for bits, keep in keeps.items()
        if keep >= least
    ]
