"""Masks: one 0/1 vector a site a block, laid end to end in one flat vector.

In comes a model and its family row; out come the layout of its sites, hooks that make the model run
masked (arXiv 2410.11988, Eqs. 2 and 3, the norm before the mask), and the masks file that is the
one hand-over between choosing and exporting.

N entries of all sites, S sites (5 a block), L blocks.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config import HEADS, SITES, InputError
from disp_llm.families import Family
from disp_llm.files import write_tensors

STREAM_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""Those whose entries are dimensions of the residual stream."""


@dataclass(frozen=True)
class BlockShape:
    """Widths of one dense block; with `|S|` ones of a site its linear weights count
    `|S1|·qkv + |S2|·q + pieces·|S3|·|S4| + |S4|·|S5|`, where qkv and q are those of the kept heads.
    """

    hidden: int
    """D, width of the residual stream."""
    qkv: int
    """Outputs of the attention's reads together, q + 2kv."""
    q: int
    """Inputs of the attention's write."""
    pieces: int
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


def blocks_of(model: PreTrainedModel, family: Family) -> nn.ModuleList:
    """The list of blocks of a causal model."""
    blocks = model.base_model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList), family.blocks
    return blocks


def layout_of(model: PreTrainedModel, family: Family, heads: bool = False) -> Layout:
    """Measures every block of a dense model (on the meta device if need be); of a pruned one only
    the inside of attention is right.

    Args:
        heads: whether KV heads are a site.

    Raises:
        InputError: they are to be, and the family's attention cannot lose any.
    """
    if heads and not family.whole_heads:
        raise InputError(
            f"{model.config.model_type} cannot lose whole heads",
            flag="--sites",
            mend="leave heads out",
        )
    config = model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    blocks = blocks_of(model, family)
    return Layout(tuple(_measure(block, family, kv_heads if heads else 0) for block in blocks))


def _measure(block: nn.Module, family: Family, heads: int) -> BlockShape:
    attn_reads, mlp_reads = (
        [linear_at(block, path) for path in branch.reads]
        for branch in (family.attention, family.mlp)
    )
    attn_writes = linear_at(block, family.attention.writes)
    mlp_writes = linear_at(block, family.mlp.writes)
    biased = [linear.bias is not None for linear in (attn_writes, mlp_reads[0], mlp_writes)]
    pieces = len(mlp_reads) * family.mlp.fused
    biases = (0, int(biased[0]), 0, pieces * biased[1], int(biased[2]))
    if heads:
        outputs = sum(widths_of(linear)[1] for linear in attn_reads if linear.bias is not None)
        biases = (*biases, outputs // heads)
    return BlockShape(
        hidden=widths_of(attn_reads[0])[0],
        qkv=sum(widths_of(linear)[1] for linear in attn_reads),
        q=widths_of(attn_writes)[0],
        pieces=pieces,
        intermediate=widths_of(mlp_writes)[0],
        biases=biases,
        heads=heads,
    )


@dataclass(frozen=True)
class Choice:
    """What a method leaves behind: the masks of every size follow from it."""

    logits: Float[Tensor, " N"]
    """The higher, the longer an entry stays as the size falls."""
    scales: Float[Tensor, " N"] | None = None
    """What a kept entry is multiplied by, folded into the weights at export; None = 1 each."""
    means: Float[Tensor, " M"] | None = None
    """Mean inputs of the layers that write, block by block (attention's q, then the MLP's F): what
    a dropped one adds on average becomes a bias at export; None = no biases."""


@dataclass(frozen=True)
class Masks:
    """The entries that a size keeps, and the choice behind them."""

    layout: Layout
    kept: Bool[Tensor, " N"]
    choice: Choice

    @property
    def compensation(self) -> Choice:
        """The choice as far as it changes weights: without scales and means where nothing is
        dropped, so that this model is the original to the bit."""
        return Choice(self.choice.logits) if self.kept.all() else self.choice

    def indices(self) -> dict[str, Int[Tensor, " K"]]:
        """Sorted int64 kept indices of each site, by name."""
        parts = self.layout.split(self.kept)
        return {
            name: part.nonzero().squeeze(-1)
            for name, part in zip(self.layout.names, parts, strict=True)
        }

    def save(self, path: Path) -> None:
        """Writes kept indices under `layers.3.attn_in`, logits under `logits.layers.3.attn_in` and
        scales, where there are any, under `scales.layers.3.attn_in`."""
        tensors = self.indices()
        if self.choice.means is not None:
            tensors["means"] = self.choice.means.float()
        for kind in BY_ENTRY:
            flat = getattr(self.choice, kind)
            if flat is not None:
                parts = zip(self.layout.names, self.layout.split(flat.float()), strict=True)
                tensors |= {f"{kind}.{name}": part.clone() for name, part in parts}
        write_tensors(path, tensors)


BY_ENTRY = ("logits", "scales")
"""Parts of a choice that have a number for every entry."""


def load_masks(path: Path, layout: Layout) -> Masks:
    """Reads a masks file.

    Raises:
        InputError: missing, damaged, or made for another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
            others = {"means", *(f"{kind}.{name}" for kind in BY_ENTRY for name in layout.names)}
            if found - others != set(layout.names):
                raise InputError("made for another model", flag=str(path), mend="name its own run")
            kept = []
            for name, length in zip(layout.names, layout.lengths, strict=True):
                part = torch.zeros(length, dtype=torch.bool)
                part[file.get_tensor(name)] = True
                kept.append(part)
            flat = {
                kind: torch.cat([file.get_tensor(f"{kind}.{name}") for name in layout.names])
                for kind in BY_ENTRY
                if f"{kind}.{layout.names[0]}" in found
            }
            if "means" in found:
                flat["means"] = file.get_tensor("means")
    except (OSError, SafetensorError, IndexError) as error:
        raise InputError(
            f"cannot be read ({error})", flag=str(path), mend="run `disp-llm prune --resume` again"
        ) from error
    return Masks(layout, torch.cat(kept), Choice(**flat))


class Masking:
    """The masks that a model wrapped by `masked` currently runs with; set them before a forward.

    Each lies on the module that it acts on, so that the hooks are the same function for every
    block and a compiler translates one block for all.
    """

    def __init__(self, layout: Layout, places: list[tuple[nn.Module, str, int]]):
        self._layout, self._places = layout, places
        self._flat = torch.ones(layout.entries)

    def set(self, flat: Float[Tensor, "*B N"]) -> None:
        """(N) for every sequence, or (B, N) with a mask of its own for each sequence of the
        batch."""
        self._flat = flat
        parts = flat.split(self._layout.lengths, dim=-1)
        for (module, name, repeats), part in zip(self._places, parts, strict=True):
            part = part.repeat_interleave(repeats, -1) if repeats > 1 else part
            setattr(module, name, part.unsqueeze(-2) if flat.dim() > 1 else part)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """While the context lasts, all masks are one: the model is the dense one."""
        before = self._flat
        self.set(torch.ones_like(before.detach()))
        try:
            yield
        finally:
            self.set(before)


MASK_IN, MASK_OUT = "disp_mask_in", "disp_mask_out"


@contextlib.contextmanager
def masked(model: PreTrainedModel, family: Family, layout: Layout) -> Iterator[Masking]:
    """While the context lasts, every site of the model is multiplied by its mask."""
    places: list[tuple[nn.Module, str, int]] = []
    handles = []
    attention, mlp = family.attention, family.mlp
    paths = [  # in the order of the sites
        (attention.gather, MASK_IN),
        (attention.scatter, MASK_OUT),
        (mlp.gather, MASK_IN),
        (mlp.writes, MASK_IN),
        (mlp.scatter, MASK_OUT),
        (attention.writes, MASK_IN),
    ][: len(layout.sites)]
    for block, shape in zip(blocks_of(model, family), layout.blocks, strict=True):
        for path, name in paths:
            module = block.get_submodule(path)
            # A head's mask lies on each of the numbers that it hands to the attention's write.
            repeats = shape.q // shape.heads if path == attention.writes else 1
            places.append((module, name, repeats))
            if name == MASK_IN:
                handles.append(module.register_forward_pre_hook(_on_input, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_on_output))
    try:
        yield Masking(layout, places)
    finally:
        for handle in handles:
            handle.remove()
        for module, name, _ in places:
            module.__dict__.pop(name, None)


def _multiply(hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, T, width) or, as OPT has them in its MLP, (B·T, width)."""
    mask = mask.to(hidden.dtype)
    if hidden.dim() == 2 and mask.dim() == 3:
        mask = mask.expand(-1, hidden.shape[0] // mask.shape[0], -1).flatten(0, 1)
    return hidden * mask


def _on_input(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    mask = module.disp_mask_in
    if args:
        return (_multiply(args[0], mask), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _multiply(kwargs["hidden_states"], mask)}


def _on_output(module: Any, args: tuple, output):
    mask = module.disp_mask_out
    if isinstance(output, tuple):
        return (_multiply(output[0], mask), *output[1:])
    return _multiply(output, mask)
