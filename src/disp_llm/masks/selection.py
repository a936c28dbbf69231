"""What is kept: the masks of a size, the numbers that they follow from, and their file.

The file is the one hand-over between choosing and exporting.

N entries of all sites, M inputs of all layers that write.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.masks.layout import Layout
from disp_llm.runs.files import write_tensors


@dataclass(frozen=True)
class Compensation:
    """What changes the kept weights at export, to make up for the pruned ones."""

    scales: Float[Tensor, " N"] | None = None
    """Factor of every kept entry; None = 1 each."""
    mean_inputs: Float[Tensor, " M"] | None = None
    """Mean inputs of the layers that write, block by block (attention's q, then the MLP's F): what
    a pruned input adds on average becomes a bias; None = no biases."""

    def __bool__(self) -> bool:
        return self.scales is not None or self.mean_inputs is not None


@dataclass(frozen=True)
class Selection:
    """What a method leaves behind: the masks of every size follow from it."""

    importance: Float[Tensor, " N"]
    """Learned logits or one-shot scores: the higher, the longer an entry is kept as the size falls.
    """
    compensation: Compensation = Compensation()

    def on_cpu(self) -> "Selection":
        """The same in float32 in the machine's memory."""
        own = self.compensation
        parts = (None if t is None else t.float().cpu() for t in (own.scales, own.mean_inputs))
        return Selection(self.importance.float().cpu(), Compensation(*parts))


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
        own = self.selection
        tensors = self.indices()
        if own.compensation.mean_inputs is not None:
            tensors["means"] = own.compensation.mean_inputs.float()
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
    try:
        with safe_open(path, framework="pt") as file:
            found, names = set(file.keys()), layout.names
            known = {"means", *(f"{kind}.{n}" for kind in ("logits", "scales") for n in names)}
            if found - known != set(names):
                raise InputError("made for another model", field=str(path), hint="name its own run")

            def flat(kind: str) -> Tensor:
                return torch.cat([file.get_tensor(f"{kind}.{name}") for name in names])

            kept = []
            for name, length in zip(names, layout.lengths, strict=True):
                part = torch.zeros(length, dtype=torch.bool)
                part[file.get_tensor(name)] = True
                kept.append(part)
            compensation = Compensation(
                flat("scales") if f"scales.{names[0]}" in found else None,
                file.get_tensor("means") if "means" in found else None,
            )
            selection = Selection(flat("logits"), compensation)
    except (OSError, SafetensorError, IndexError) as error:
        raise InputError(
            f"cannot be read ({error})", field=str(path), hint="run `disp-llm prune --resume` again"
        ) from error
    return Masks(layout, torch.cat(kept), selection)
