"""What is kept: the masks of a size, the numbers that they follow from, and their file.

The file is the one hand-over between choosing and exporting.

N entries of all sites, L blocks, M inputs of all layers that write, R rank, I inputs and O outputs
of a linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, BRANCHES, HEADS, Site
from disp_llm.masks.layout import STREAM_SITES, Layout, common_chunk
from disp_llm.runs.files import write_tensors
from disp_llm.runs.tensors import TensorFile, read_tensors

MADE_AGAIN = "delete it: `disp-llm prune … --resume` makes it again"
"""What to do about a damaged masks file: learning goes on from its checkpoints."""


UNKNOWN = 2**31
"""Stands for a width that no model has."""


@dataclass(frozen=True)
class Adapter:
    """What is added to the weight of a linear layer: `up @ down`, the B·A of LoRA, and `whole`
    where the weight itself was learned."""

    down: Float[Tensor, "R I"]
    up: Float[Tensor, "O R"]
    whole: Float[Tensor, "O I"] | None = None

    def added(self) -> Float[Tensor, "O I"]:
        """The sum of both, in float32."""
        product = self.up.float() @ self.down.float()
        return product if self.whole is None else product + self.whole.float()

    def each(self, change: Callable[[Tensor], Tensor]) -> "Adapter":
        """With every matrix changed alike."""
        whole = None if self.whole is None else change(self.whole)
        return Adapter(change(self.down), change(self.up), whole)


@dataclass(frozen=True)
class Compensation:
    """What changes the kept weights at export, to make up for the pruned ones."""

    scales: Float[Tensor, " N"] | None = None
    """Factor of every kept entry; None = 1 each."""
    mean_inputs: Float[Tensor, " M"] | None = None
    """Mean inputs of the layers that write, block by block (attention's q, then the MLP's F): what
    a pruned input adds on average becomes a bias; None = no biases."""
    adapters: tuple[Adapter, ...] = ()
    """One for every linear layer of the blocks, in the order of `PrunableModel.linears`; empty =
    none."""

    @property
    def adapter_rank(self) -> int:
        """Rank of the adapters; 0 = none."""
        return len(self.adapters[0].down) if self.adapters else 0

    @property
    def learned_weights(self) -> bool:
        """Whether all weights of the blocks' linear layers were learned."""
        return any(adapter.whole is not None for adapter in self.adapters)

    def __bool__(self) -> bool:
        return self.scales is not None or self.mean_inputs is not None or bool(self.adapters)

    def on_cpu(self) -> "Compensation":
        """The same in float32 in the machine's memory."""
        scales, means = (
            None if t is None else t.float().cpu() for t in (self.scales, self.mean_inputs)
        )
        adapters = tuple(one.each(lambda t: t.float().cpu()) for one in self.adapters)
        return Compensation(scales, means, adapters)


@dataclass(frozen=True)
class Selection:
    """What a method leaves behind: the masks of every size follow from it."""

    importance: Float[Tensor, " N"]
    """Learned logits or one-shot scores: the higher, the longer an entry is kept as the size falls.
    """
    compensation: Compensation = Compensation()

    def on_cpu(self) -> "Selection":
        """The same in float32 in the machine's memory."""
        return Selection(self.importance.float().cpu(), self.compensation.on_cpu())


@dataclass(frozen=True)
class Masks:
    """The entries that a size keeps, and the selection behind them."""

    layout: Layout
    kept: Bool[Tensor, " N"]
    selection: Selection

    @property
    def compensation(self) -> Compensation:
        """That of the selection; none where nothing is pruned, so that this model is the original
        to the bit."""
        return Compensation() if self.kept.all() else self.selection.compensation

    @property
    def counts(self) -> Int[Tensor, " S"]:
        """How many entries each of the S sites keeps."""
        return self.layout.counts(self.kept.long())

    @property
    def widths(self) -> dict[str, list[int]]:
        """The same of every site, block by block; in a mixture mlp_mid is that of each expert."""
        lanes = torch.tensor(self.layout.lanes)
        by_block = (self.counts // lanes).view(-1, len(self.layout.sites))
        return dict(zip(self.layout.sites, by_block.T.tolist(), strict=True))

    @cached_property
    def chunk(self) -> int:
        """How many neighbours in the residual stream are kept or pruned together, wherever any is
        pruned; 1 where none is."""
        parts = zip(self.layout.split(self.kept), self.layout.in_stream.tolist(), strict=True)
        cut = [part for part, shared in parts if shared and part.any() and not part.all()]
        return common_chunk(cut) if cut else 1

    def of_site(self, site: Site) -> Int[Tensor, " L"]:
        """How many entries of a site each block keeps."""
        sites = self.layout.sites
        return self.counts.view(-1, len(sites))[:, sites.index(site)]

    @property
    def dropped(self) -> dict[str, int]:
        """How many blocks have lost their attention, and how many their MLP."""
        names = [name for name in BRANCHES if name in self.layout.sites]
        return {name: int((self.of_site(name) == 0).sum()) for name in names}

    @property
    def heads_pruned(self) -> bool:
        """Whether an attention that stays has lost heads."""
        if HEADS not in self.layout.sites:
            return False
        kept, heads = self.of_site(HEADS), torch.tensor([one.heads for one in self.layout.blocks])
        return bool(((kept > 0) & (kept < heads)).any())

    @property
    def kv_cache(self) -> float:
        """Size of the KV cache as a share of the dense model's."""
        for site in (HEADS, ATTENTION):
            if site in self.layout.sites:
                place = self.layout.sites.index(site)
                of_block = torch.tensor([one.cached for one in self.layout.blocks])
                entries = torch.tensor([one.lengths[place] for one in self.layout.blocks])
                kept = self.of_site(site).double() / entries
                return float((kept * of_block).sum() / of_block.sum().clamp(min=1))
        return 1.0

    def indices(self) -> dict[str, Int[Tensor, " K"]]:
        """Sorted int64 kept indices of each site, by name."""
        parts = self.layout.split(self.kept)
        return {
            name: part.nonzero().squeeze(-1)
            for name, part in zip(self.layout.names, parts, strict=True)
        }

    def save(self, path: Path, with_adapters: bool = False) -> None:
        """Writes kept indices under `layers.3.attn_in`, logits under `logits.layers.3.attn_in` and
        scales, where there are any, under `scales.layers.3.attn_in`.

        Args:
            with_adapters: whether adapters, which are the same for all sizes of a run, are written
                too, under `adapters.17.down`, `adapters.17.up` and `adapters.17.whole` for the
                linear layer 17.

        Raises:
            InputError: the method gave numbers that are not finite, or the file cannot be written.
        """
        own = self.selection
        if not own.importance.isfinite().all():
            raise InputError(
                "gave numbers that are not finite", field="method", hint="try the `dtype` float32"
            )
        tensors = self.indices()
        if own.compensation.mean_inputs is not None:
            tensors["means"] = own.compensation.mean_inputs.float()
        for number, adapter in enumerate(own.compensation.adapters if with_adapters else ()):
            tensors[f"adapters.{number}.down"] = adapter.down.float()
            tensors[f"adapters.{number}.up"] = adapter.up.float()
            if adapter.whole is not None:
                tensors[f"adapters.{number}.whole"] = adapter.whole.float()
        for kind, flat in (("logits", own.importance), ("scales", own.compensation.scales)):
            if flat is not None:
                parts = zip(self.layout.names, self.layout.split(flat.float()), strict=True)
                tensors |= {f"{kind}.{name}": part.clone() for name, part in parts}
        write_tensors(path, tensors)


def load_masks(path: Path, layout: Layout) -> Masks:
    """Reads a masks file.

    Raises:
        InputError: missing, damaged, or made for another model.
    """
    file = read_tensors(path, MADE_AGAIN)
    kept = _kept(file, dict(zip(layout.names, layout.lengths, strict=True)))

    def flat(kind: str) -> Tensor:
        parts = zip(layout.names, layout.lengths, strict=True)
        return torch.cat([file.like(f"{kind}.{name}", (length,)) for name, length in parts])

    inputs = sum(block.q + block.intermediate for block in layout.blocks)
    compensation = Compensation(
        flat("scales") if any(name.startswith("scales.") for name in file.tensors) else None,
        file.like("means", (inputs,)) if "means" in file.tensors else None,
        _adapters(file),
    )
    masks = [
        torch.zeros(length, dtype=torch.bool).index_fill(0, kept[name], True)
        for name, length in zip(layout.names, layout.lengths, strict=True)
    ]
    for name, mask, lanes in zip(layout.names, masks, layout.lanes, strict=True):
        of_experts = mask.view(lanes, -1).sum(1)
        file.require(bool((of_experts == of_experts[0]).all()), f"{name} differs between experts")
    return Masks(layout, torch.cat(masks), Selection(flat("logits"), compensation))


def _adapters(file: TensorFile) -> tuple[Adapter, ...]:
    """The adapters of a file; whether their widths are the model's shows when they are added."""
    found: list[Adapter] = []
    while f"adapters.{len(found)}.down" in file.tensors:
        name = f"adapters.{len(found)}"
        down, up = (file.tensors.get(f"{name}.{part}", torch.zeros(0)) for part in ("down", "up"))
        paired = down.dim() == up.dim() == 2 and len(down) == up.shape[1]
        file.require(paired, f"{name} is no pair of matrices")
        shapes = {"down": tuple(down.shape), "up": tuple(up.shape)}
        if f"{name}.whole" in file.tensors:
            shapes["whole"] = (len(up), down.shape[1])
        found.append(Adapter(*(file.like(f"{name}.{part}", own) for part, own in shapes.items())))
    return tuple(found)


def kept_by_site(path: Path, widths: dict[str, int]) -> dict[str, list[Int[Tensor, " K"]]]:
    """The kept indices of every site, block by block, where no model is at hand.

    Args:
        widths: of every site of the first block.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = read_tensors(path, MADE_AGAIN)
    blocks = range(sum(name.startswith("layers.") for name in file.tensors) // len(widths))
    lengths = {  # all that is known of a site inside a block is the first block's width
        f"layers.{i}.{site}": width if site in (*STREAM_SITES, *BRANCHES) else UNKNOWN
        for i in blocks
        for site, width in widths.items()
    }
    kept = _kept(file, lengths)
    return {site: [kept[f"layers.{i}.{site}"] for i in blocks] for site in widths}


def _kept(file: TensorFile, lengths: dict[str, int]) -> dict[str, Int[Tensor, " K"]]:
    """The kept indices under these names, each sorted, without repetition and below its length."""
    found = {name: part for name, part in file.tensors.items() if name.startswith("layers.")}
    same = bool(found) and found.keys() == lengths.keys()
    file.require(same, "its sites are not those of this model")
    for name, part in found.items():
        file.like(name, (part.numel(),), torch.int64)
        ends = torch.tensor([-1]), torch.tensor([lengths[name]])
        rising = bool((torch.cat([ends[0], part, ends[1]]).diff() > 0).all())
        file.require(rising, f"{name} does not rise from 0 to below {lengths[name]}")
    return found
