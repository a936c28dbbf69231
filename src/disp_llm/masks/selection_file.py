"""`selection.safetensors`: a method's selection, and the kept indices of every size of a run.

    logits.layers.3.attn_in         importance of every entry of a site
    scales.layers.3.attn_in         scale of every entry, if there are any
    means                           mean inputs, if biases replace what is pruned
    adapters.17.{down,up,delta}     adapter of linear layer 17
    kept.0.8.layers.3.attn_in       kept indices of the size 0.8, int64, sorted
    vocabulary                      tokens that stay, int64, sorted; absent if all stay

This file is the only hand-over between choosing and exporting.
"""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.masks.layout import Layout
from disp_llm.masks.selection import Adapter, Compensation, Masks, Selection
from disp_llm.runs.folder import MADE_AGAIN
from disp_llm.runs.tensors import TensorFile, behind, read_tensors, write_tensors


def save_selection(
    path: Path,
    selection: Selection,
    layout: Layout,
    sizes: dict[str, Masks],
) -> None:
    """Writes a selection, and the masks of sizes by their names.

    Raises:
        InputError: the method returned numbers that are not finite, or the file cannot be written.
    """
    compensation, tensors = selection.compensation, dict[str, Tensor]()
    for kind, flat in (("logits", selection.importance), ("scales", compensation.scales)):
        if flat is not None:
            parts = layout.named(flat.float()).items()
            tensors |= {f"{kind}.{name}": part.clone() for name, part in parts}
    if compensation.mean_inputs is not None:
        tensors["means"] = compensation.mean_inputs.float()
    for number, adapter in enumerate(compensation.adapters):
        tensors[f"adapters.{number}.down"] = adapter.down.float()
        tensors[f"adapters.{number}.up"] = adapter.up.float()
        if adapter.delta is not None:
            tensors[f"adapters.{number}.delta"] = adapter.delta.float()
    for size, masks in sizes.items():
        tensors |= _named(masks, size)
    if selection.vocabulary:
        tensors["vocabulary"] = torch.tensor(selection.vocabulary)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise InputError(
            "gave numbers that are not finite", field="method", hint="try the `dtype` float32"
        )
    write_tensors(path, tensors)


def load_vocabulary(path: Path) -> tuple[int, ...]:
    """Returns the tokens that stay; () = all."""
    return _vocabulary(read_tensors(path, MADE_AGAIN, only="vocabulary"))


def _vocabulary(file: TensorFile) -> tuple[int, ...]:
    found = file.tensors.get("vocabulary", torch.zeros(0, dtype=torch.long))
    file.require(found.dim() == 1 and found.dtype == torch.long, "vocabulary is no list of tokens")
    return tuple(found.tolist())


def add_masks(path: Path, masks: Masks, size: str, new: Path) -> None:
    """Copies the file to `new`, adding or replacing the masks of a size."""
    write_tensors(new, read_tensors(path, MADE_AGAIN).tensors | _named(masks, size))


def _named(masks: Masks, size: str) -> dict[str, Tensor]:
    return {f"kept.{size}.{name}": part for name, part in masks.indices().items()}


def load_selection(path: Path, layout: Layout) -> Selection:
    """Reads a selection."""
    return _selection(read_tensors(path, MADE_AGAIN), layout)


def load_masks(path: Path, layout: Layout, size: str) -> Masks:
    """Reads the masks of a size."""
    file = read_tensors(path, MADE_AGAIN)
    kept = _kept(file, size, dict(zip(layout.names, layout.lengths, strict=True)))
    masks = [
        torch.zeros(length, dtype=torch.bool).index_fill(0, kept[name], True)
        for name, length in zip(layout.names, layout.lengths, strict=True)
    ]
    for name, mask, lanes in zip(layout.names, masks, layout.lanes, strict=True):
        of_experts = mask.view(lanes, -1).sum(1)
        file.require(bool((of_experts == of_experts[0]).all()), f"{name} differs between experts")
    return Masks(layout, torch.cat(masks), _selection(file, layout))


def has_masks(path: Path, masks: Masks, size: str) -> bool:
    """Returns whether the file holds exactly these masks for the size."""
    tensors = read_tensors(path, MADE_AGAIN).tensors
    return all(
        name in tensors and torch.equal(tensors[name], part)
        for name, part in _named(masks, size).items()
    )


def kept_by_site(path: Path, size: str) -> tuple[dict[str, list[Tensor]], dict[str, list[int]]]:
    """Returns, by site and block by block, a size's kept indices and the original's number of
    entries; needs no model."""
    file = read_tensors(path, MADE_AGAIN)
    logits = {name: part.numel() for name, part in behind("logits.", file.tensors).items()}
    found: dict[str, list[Tensor]] = {}
    lengths: dict[str, list[int]] = {}
    kept = _kept(file, size, logits)
    for name in sorted(kept, key=lambda name: int(name.split(".")[1])):
        site = name.split(".")[2]
        found.setdefault(site, []).append(kept[name])
        lengths.setdefault(site, []).append(logits[name])
    return found, lengths


def _selection(file: TensorFile, layout: Layout) -> Selection:
    def flat(kind: str) -> Tensor:
        parts = zip(layout.names, layout.lengths, strict=True)
        return torch.cat([file.like(f"{kind}.{name}", (length,)) for name, length in parts])

    inputs = sum(block.q + block.intermediate for block in layout.blocks)
    return Selection(
        flat("logits"),
        Compensation(
            flat("scales") if any(name.startswith("scales.") for name in file.tensors) else None,
            file.like("means", (inputs,)) if "means" in file.tensors else None,
            _adapters(file),
        ),
        _vocabulary(file),
    )


def _adapters(file: TensorFile) -> tuple[Adapter, ...]:
    """Reads the adapters; whether their widths fit the model shows only when they are added."""
    found: list[Adapter] = []
    while f"adapters.{len(found)}.down" in file.tensors:
        name = f"adapters.{len(found)}"
        down, up = (file.tensors.get(f"{name}.{part}", torch.zeros(0)) for part in ("down", "up"))
        paired = down.dim() == up.dim() == 2 and len(down) == up.shape[1]
        file.require(paired, f"{name} is no pair of matrices")
        shapes = {"down": tuple(down.shape), "up": tuple(up.shape)}
        if f"{name}.delta" in file.tensors:
            shapes["delta"] = (len(up), down.shape[1])
        found.append(Adapter(*(file.like(f"{name}.{part}", own) for part, own in shapes.items())))
    return tuple(found)


def _kept(file: TensorFile, size: str, lengths: dict[str, int]) -> dict[str, Int[Tensor, " K"]]:
    """Reads a size's kept indices; requires each list to be in range and strictly rising."""
    begins = f"kept.{size}."
    found = behind(begins, file.tensors)
    same = bool(found) and found.keys() == lengths.keys()
    file.require(same, f"its sites of {size} are not those of this model")
    for name, part in found.items():
        file.like(f"{begins}{name}", (part.numel(),), torch.int64)
        ends = torch.tensor([-1]), torch.tensor([lengths[name]])
        rising = bool((torch.cat([ends[0], part, ends[1]]).diff() > 0).all())
        file.require(rising, f"{name} does not rise from 0 to below {lengths[name]}")
    return found
