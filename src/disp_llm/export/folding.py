"""Scales, mean inputs and adapters -> weights and biases of the dense model, for as long as a
context lasts.

D hidden, F intermediate, Q inputs of the layer that attention writes with.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import is_conv1d, linear_at, matrix_of, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import ATTENTION, HEADS, MLP
from disp_llm.masks.layout import BlockShape, Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import MADE_AGAIN, Adapter, Masks


@dataclass(frozen=True)
class Replaced:
    """A parameter that was taken out of its layer."""

    linear: Any
    name: str
    parameter: nn.Parameter | None
    device: torch.device

    def put_back(self) -> None:
        """Gives the layer its own parameter again, on the device that it came from."""
        setattr(self.linear, self.name, self.parameter)
        if self.parameter is not None:
            self.parameter.data = self.parameter.data.to(self.device)


@dataclass(frozen=True)
class Change:
    """What is folded into the linear layers of one branch; None changes nothing."""

    read_scales: Tensor
    """(D) Factors of the columns of the layers that read."""
    column_scales: Tensor | None
    """(Q or F) Factors of the columns of the layer that writes."""
    row_scales: Tensor
    """(D) Factors of its rows and of its bias."""
    kept_columns: Tensor
    """(Q or F) Which of its columns are kept."""

    def pruned_means(self, mean_inputs: Tensor | None) -> Tensor | None:
        """The mean inputs of the columns that are pruned, zero at the others."""
        return None if mean_inputs is None else mean_inputs.masked_fill(self.kept_columns, 0.0)


@contextlib.contextmanager
def fold_into_weights(target: PrunableModel, masks: Masks) -> Iterator[None]:
    """While the context lasts, the blocks carry what the selection has beside its masks.

    A scale of attn_in or mlp_in multiplies the columns of all linear layers that read there, one of
    mlp_mid those of the layer that writes, one of attn_out or mlp_out its rows and bias, one of a
    whole branch all of these rows. Adapters
    are added to the weights before. What pruned columns of a layer that writes would have added on
    average becomes its bias. Products are rounded to the model's dtype, so that what is then masked
    is what is then exported. On a GPU the original weights wait in the machine's memory.
    """
    replaced: list[Replaced] = []
    try:
        if masks.compensation:
            _fold(target, masks, replaced)
        yield
    finally:
        for one in replaced:
            one.put_back()


def writer_widths(layout: Layout) -> list[int]:
    """Inputs of the layers that write, block by block: attention's, then the MLP's."""
    return [width for block in layout.blocks for width in (block.q, block.intermediate)]


def _fold(target: PrunableModel, masks: Masks, replaced: list[Replaced]) -> None:
    """Changes every block; what was there is appended to `replaced`."""
    means = masks.compensation.mean_inputs
    mean_inputs = iter(() if means is None else means.split(writer_widths(masks.layout)))
    adapters = _adapters(target, masks)
    changes = _changes(masks)
    for block in target.blocks:
        for branch in target.branches_of(block):
            change = next(changes)
            for path in branch.reads:
                linear = linear_at(block, path)
                made = _scaled(linear, change.read_scales, None, next(adapters))
                _replace(linear, made, replaced)
            for path in branch.inside:
                linear = linear_at(block, path)
                _replace(linear, _scaled(linear, None, None, next(adapters)), replaced)
            linear = linear_at(block, branch.writes)
            pruned_means = change.pruned_means(next(mean_inputs, None))
            scales = change.column_scales, change.row_scales
            made = _scaled(linear, *scales, next(adapters), pruned_means)
            _replace(linear, made, replaced)


def _adapters(target: PrunableModel, masks: Masks) -> Iterator[Adapter | None]:
    """The adapter of every linear layer in turn; None where there are none.

    Raises:
        InputError: they are not of this model's shape.
    """
    linears, adapters = list(target.linears()), masks.compensation.adapters
    shapes = [(len(one.up), one.down.shape[1]) for one in adapters]
    if adapters and shapes != [widths_of(linear)[::-1] for linear in linears]:
        raise InputError(
            "holds adapters of another model", field="masks.safetensors", hint=MADE_AGAIN
        )
    return iter(adapters or [None] * len(linears))


def _changes(masks: Masks) -> Iterator[Change]:
    """Block by block those of attention and of the MLP; a pruned entry has the scale 1."""
    layout, scales = masks.layout, masks.compensation.scales
    factors = torch.ones(layout.entries) if scales is None else scales.cpu()
    all_scales = iter(layout.split(torch.where(masks.kept, factors, 1.0)))
    all_kept = iter(layout.split(masks.kept))
    for shape in layout.blocks:
        scale = {site: next(all_scales) for site in layout.sites}
        kept = {site: next(all_kept) for site in layout.sites}
        head_scales, kept_columns = None, torch.ones(shape.q, dtype=torch.bool)
        if HEADS in scale:
            head_scales = _by_column(scale[HEADS], shape)
            kept_columns = _by_column(kept[HEADS], shape)
        rows = scale["attn_out"] * scale.get(ATTENTION, 1.0)
        yield Change(scale["attn_in"], head_scales, rows, kept_columns)
        rows = scale["mlp_out"] * scale.get(MLP, 1.0)
        yield Change(scale["mlp_in"], scale["mlp_mid"], rows, kept["mlp_mid"])


def _by_column(of_heads: Tensor, shape: BlockShape) -> Tensor:
    """Numbers of KV heads -> (Q) the same for every column that belongs to a head."""
    return of_heads.repeat_interleave(shape.q // shape.heads)


def _scaled(
    linear: Any,
    columns: Tensor | None,
    rows: Tensor | None,
    adapter: Adapter | None,
    pruned_means: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weight and bias with the adapter added, and with scaled columns and rows; the bias carries
    the mean inputs of pruned columns."""
    device = linear.weight.device
    weight = matrix_of(linear).float()
    bias = None if linear.bias is None else linear.bias.detach().float()
    if adapter is not None:
        weight = weight + adapter.added().to(device)
    if pruned_means is not None:
        added = weight @ pruned_means.to(device)
        bias = added if bias is None else bias + added
    if columns is not None:
        weight = weight * columns.to(device)
    if rows is not None:
        weight = weight * rows.to(device)[:, None]
        bias = None if bias is None else bias * rows.to(device)
    stored = (weight.T if is_conv1d(linear) else weight).contiguous()
    return {"weight": stored} if bias is None else {"weight": stored, "bias": bias}


def _replace(linear: Any, made: dict[str, Tensor], replaced: list[Replaced]) -> None:
    """Gives a layer new parameters in its dtype; on a GPU the old ones move to the CPU."""
    device, dtype = linear.weight.device, linear.weight.dtype
    for name, new in made.items():
        old = getattr(linear, name)
        replaced.append(Replaced(linear, name, old, device))
        setattr(linear, name, nn.Parameter(new.to(dtype), requires_grad=False))
        if old is not None:
            old.data = old.data.cpu()
