"""Plans from masks and compensation how each tensor of the compact model is made.

The plan needs only the shapes of the original, so it can be made on the meta device. `cutting`
carries it out in memory, `folders` tensor by tensor.

M inputs of a layer that writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import is_conv1d, widths_of
from disp_llm.config.errors import InputError
from disp_llm.exporter.entries import (
    Entries,
    entries_of,
    kept_of,
    mean_inputs_of,
    scales_of,
    where,
)
from disp_llm.exporter.parts import Cut, Part
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter, Masks, Selection
from disp_llm.masks.shapes import head_ranges
from disp_llm.models.family import Branch
from disp_llm.runs.folder import MADE_AGAIN

End = tuple[Tensor | None, Tensor | None]
"""Mask of a linear layer's inputs or outputs, and their factors; None = all kept, or 1 each."""


def plan_of(target: PrunableModel, masks: Masks) -> dict[str, Part]:
    """Returns how each tensor of the compact model is made, by its name there. The dense model may
    be on the meta device."""
    draft = Draft.of(target)
    adapters, means = _adapters(target, masks), mean_inputs_of(masks)
    scales = scales_of(masks)
    places = (
        (block, branch, shape.experts)
        for block, shape in zip(target.blocks, masks.layout.blocks, strict=True)
        for branch in target.branches_of(block)
    )
    entries = entries_of(masks.layout, masks.kept)
    for (block, branch, experts), kept in zip(places, entries, strict=True):
        scale = next(scales, None)
        at_linears = (kept, scale)
        if branch.experts is not None:  # linear layers of the shared expert, never cut inside
            at_linears = (replace(kept, middle=None), scale and replace(scale, middle=None))
        parts: list[Cut] = []
        for path in branch.linear_paths:
            linear, writes = block.get_submodule(path), path == branch.writes
            ends: tuple[End, End] = ((None, None), (None, None))
            if path not in branch.inside:
                inner = widths_of(linear)[0 if writes else 1]
                inner = head_ranges(block, branch, path, inner)
                ends = _ends(writes, inner, *at_linears)
            pruned = _pruned(next(means, None), kept) if writes else None
            parts += _of_linear(draft.names[id(linear)], linear, *ends, next(adapters), pruned)
        prefix = f"{draft.names[id(block)]}."
        if branch.experts is not None:
            from disp_llm.exporter.mixtures import of_experts

            parts += of_experts(prefix, branch.experts, experts, kept, scale)
        parts += _of_heads(prefix, block, branch, kept)
        draft.parts.update({part.source: part for part in parts})
        draft.add_indices(block, branch, kept, masks.chunk)
        if kept.whole is not None and not kept.whole.any():
            draft.drop(block, branch)
    return draft.parts


def cuts_of(target: PrunableModel, masks: Masks) -> dict[str, Part]:
    """Returns the plan without compensation, which only cuts rows and columns: for a model whose
    weights contain the compensation already."""
    return plan_of(target, replace(masks, selection=Selection(masks.selection.importance)))


def _adapters(target: PrunableModel, masks: Masks) -> Iterator[Adapter | None]:
    """Yields the adapter of every linear layer; None for each if there are none."""
    linears, adapters = list(target.linears()), masks.compensation.adapters
    shapes = [(len(one.up), one.down.shape[1]) for one in adapters]
    if adapters and shapes != [widths_of(linear)[::-1] for linear in linears]:
        raise InputError(
            "holds adapters of another model", field="selection.safetensors", hint=MADE_AGAIN
        )
    return iter(adapters or [None] * len(linears))


def _ends(
    writes: bool, inner: tuple[int, ...], kept: Entries, scale: Entries | None
) -> tuple[End, End]:
    """Returns the ends at the outputs and inputs of a layer that reads or writes the stream.
    `inner`: widths of the ranges at its end inside the branch (`head_ranges`)."""
    by_inside = by_stream = None
    if scale is not None:
        by_inside = scale.inside(*inner) if writes else None
        by_stream = scale.rows if writes else scale.incoming
    inside = kept.inside(*inner), by_inside
    stream = (kept.outgoing if writes else kept.incoming), by_stream
    return (stream, inside) if writes else (inside, stream)


def _of_linear(
    name: str,
    linear: Any,
    outputs: End,
    inputs: End,
    adapter: Adapter | None,
    pruned_means: Tensor | None,
) -> list[Cut]:
    """Returns the cut of a linear layer's weight, and of its bias if it has or gains one."""
    (rows, by_row), (columns, by_column) = outputs, inputs
    of_weight = () if by_column is None else (by_column[None],)
    of_weight += () if by_row is None else (by_row[:, None],)
    across, along = 0, 1
    if turned := is_conv1d(linear):
        across, along, of_weight = 1, 0, tuple(factor.T for factor in of_weight)
    picks = kept_of((across, rows), (along, columns))
    weight = Cut(f"{name}.weight", picks, of_weight, adapter, turned)
    if linear.bias is None and pruned_means is None:
        return [weight]
    means = None if pruned_means is None else (weight, pruned_means)
    of_bias, is_new = () if by_row is None else (by_row,), linear.bias is None
    bias = Cut(f"{name}.bias", kept_of((0, rows)), of_bias, means=means, is_new=is_new)
    return [weight, bias]


def _of_heads(prefix: str, block: nn.Module, branch: Branch, kept: Entries) -> list[Cut]:
    """Returns the cuts of parameters that heads have beside the linear layers."""
    parts = []
    for path in branch.per_head:
        ranges = head_ranges(block, branch, path, len(block.get_parameter(path)))
        parts.append(Cut(f"{prefix}{path}", kept_of((0, kept.inside(*ranges)))))
    return parts


def _pruned(mean_inputs: Tensor | None, kept: Entries) -> Tensor | None:
    """Mean inputs of pruned columns, 0 at the others: (M). None if there are no mean inputs."""
    if mean_inputs is None:
        return None
    columns = kept.inside(len(mean_inputs))
    stays = torch.ones(len(mean_inputs), dtype=torch.bool) if columns is None else columns
    return mean_inputs.masked_fill(stays, 0.0)


@dataclass(frozen=True)
class Draft:
    """A plan that is being changed from the dense model's tensors to the compact model's."""

    parts: dict[str, Part]
    """See `plan_of`."""
    names: dict[int, str]
    """Name of every module of the dense model, by the module's `id`."""

    @classmethod
    def of(cls, target: PrunableModel) -> "Draft":
        """Starts a plan that leaves all tensors of a model unchanged."""
        names = {id(module): name for name, module in target.model.named_modules()}
        return cls({name: Cut(name) for name in target.model.state_dict()}, names)

    def add_indices(self, block: nn.Module, branch: Branch, kept: Entries, chunk: int) -> None:
        """Adds the index buffers of a branch's gather and scatter unless these keep everything. An
        index is the number of a chunk of `chunk` neighbours."""
        places = [
            *((path, "kept_in", kept.incoming) for path in branch.selects_in),
            *((path, "kept_out", kept.outgoing) for path in branch.selects_out),
        ]
        for path, buffer, mask in places:
            if not mask.all():
                name = self.names[id(block.get_submodule(path))]
                self.parts[f"{name}.{buffer}"] = where(mask[::chunk])
                if path in (*branch.reads, branch.writes):  # the selection acts on a bare layer
                    self._wrap(name)

    def drop(self, block: nn.Module, branch: Branch) -> None:
        """Removes all tensors of a branch and its norms."""
        modules = [module for path, module in block.named_modules() if path in branch.modules]
        prefixes = tuple(f"{self.names[id(module)]}." for module in modules)
        for name in [name for name in self.parts if name.startswith(prefixes)]:
            del self.parts[name]

    def _wrap(self, name: str) -> None:
        """Renames a linear layer's parameters to their names inside a `LinearWrapper`."""
        for part in ("weight", "bias"):
            if f"{name}.{part}" in self.parts:
                self.parts[f"{name}.linear.{part}"] = self.parts.pop(f"{name}.{part}")
