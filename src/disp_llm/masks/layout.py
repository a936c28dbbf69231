"""Which stretch of the flat vector of entries is which site of which block.

N entries of all sites, S sites (5 a block), L blocks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS, SITES
from disp_llm.models.architectures import Family

STREAM_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Those whose entries are dimensions of the residual stream."""

IN_STREAM = tuple(site in STREAM_SITES for site in (*SITES, HEADS))
"""The same for each site of a block, in order."""


@dataclass(frozen=True)
class BlockShape:
    """Widths of one dense block.

    With `|S|` ones of a site its linear weights count `|S1|·qkv + |S2|·q + n·|S3|·|S4| + |S4|·|S5|`
    for n input projections; qkv and q are those of the kept heads.
    """

    hidden: int
    """D, width of the residual stream."""
    qkv: int
    """Outputs of the attention's reads together, q + 2kv."""
    q: int
    """Inputs of the attention's write."""
    num_input_projections: int
    """Projections that read for the MLP: 2 gated, 1 plain."""
    intermediate: int
    """F, width inside the MLP."""
    biases: tuple[int, ...]
    """Bias numbers that go with one entry of each site (they follow their output dimension)."""
    heads: int = 0
    """KV heads, where they are a site; 0 where all of them stay."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each site."""
        five = (self.hidden, self.hidden, self.hidden, self.intermediate, self.hidden)
        return (*five, self.heads) if self.heads else five


@dataclass(frozen=True)
class Layout:
    """Which stretch of the flat vector is which site of which block."""

    blocks: tuple[BlockShape, ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each of the S sites."""
        return tuple(length for block in self.blocks for length in block.lengths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`layers.3.attn_in` and so on, S of them."""
        return tuple(f"layers.{i}.{site}" for i in range(len(self.blocks)) for site in self.sites)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites of a block."""
        return (*SITES, HEADS) if self.blocks[0].heads else SITES

    @property
    def entries(self) -> int:
        """N."""
        return sum(self.lengths)

    @cached_property
    def site_of_entry(self) -> Int[Tensor, " N"]:
        """Index of the site that each entry belongs to."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    def split(self, flat: Shaped[Tensor, " N"]) -> tuple[Tensor, ...]:
        """The flat vector as S views, one a site."""
        return flat.split(self.lengths)

    def counts(self, flat: Shaped[Tensor, " N"]) -> Shaped[Tensor, " S"]:
        """Sum of each site: the number of ones of a mask, differentiable."""
        sums = flat.new_zeros(len(self.lengths))
        return sums.index_add(0, self.site_of_entry.to(flat.device), flat)


def layout_of(blocks: nn.ModuleList, config: Any, family: Family, heads: bool = False) -> Layout:
    """Measures every block of a model (on the meta device if need be).

    Args:
        config: the model's transformers configuration.
        heads: whether KV heads are a site.

    Raises:
        InputError: they are to be, and the family's attention cannot lose any.
    """
    if heads and not family.supports_head_pruning:
        raise InputError(
            f"{config.model_type} cannot lose whole heads", field="sites", hint="leave heads out"
        )
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return Layout(tuple(_measure(block, family, kv_heads if heads else 0) for block in blocks))


def _measure(block: nn.Module, family: Family, heads: int) -> BlockShape:
    attn_reads, mlp_reads = (
        [linear_at(block, path) for path in branch.reads]
        for branch in (family.attention, family.mlp)
    )
    attn_writes = linear_at(block, family.attention.writes)
    mlp_writes = linear_at(block, family.mlp.writes)
    num_input_projections = len(mlp_reads) * family.mlp.fused
    biases = (
        0,
        1 if attn_writes.bias is not None else 0,
        0,
        num_input_projections if mlp_reads[0].bias is not None else 0,
        1 if mlp_writes.bias is not None else 0,
    )
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in attn_reads if linear.bias is not None)
        biases = (*biases, outputs // heads)
    return BlockShape(
        hidden=widths_of(attn_reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in attn_reads),
        q=widths_of(attn_writes)[0],
        num_input_projections=num_input_projections,
        intermediate=widths_of(mlp_writes)[0],
        biases=biases,
        heads=heads,
    )
