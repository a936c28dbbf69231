"""Model + masks -> a folder that loads where the original did.

The kept rows and columns of the block linears are copied into the shapes of the compact classes,
everything else as it is. `save_pretrained` of transformers writes the folder, so that the code that
the folder needs travels with it, also when it is loaded, tuned and saved again.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.compact import config_class, model_classes
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.compact.modeling_disp_llm import is_turned, linear_at, matrix_of, widths_of
from disp_llm.config import HEADS, SITES
from disp_llm.families import Branch, Family
from disp_llm.files import atomic
from disp_llm.masks import Layout, Masks, blocks_of

Waiting = tuple[Any, str, nn.Parameter | None, torch.device]
"""A layer, the name of one of its parameters, what it was before, and on which device."""


@contextlib.contextmanager
def folded(model: PreTrainedModel, family: Family, masks: Masks) -> Iterator[None]:
    """While the context lasts, the blocks carry what the choice has beside its masks.

    A scale of attn_in or mlp_in multiplies the columns of all linear layers that read there, one of
    mlp_mid those of the layer that writes, one of attn_out or mlp_out its rows and bias. The mean
    of what dropped columns of a layer that writes would have added becomes its bias. Products are
    rounded to the model's dtype, so that what is then masked is what is then exported. On a GPU the
    original weights wait in the machine's memory.
    """
    choice = masks.compensation
    if choice.scales is None and choice.means is None:
        yield
        return
    scales = torch.ones(masks.layout.entries) if choice.scales is None else choice.scales.cpu()
    parts = iter(masks.layout.split(torch.where(masks.kept, scales, 1.0)))
    kept = iter(masks.layout.split(masks.kept))
    means = iter(() if choice.means is None else choice.means.split(writer_widths(masks.layout)))
    before: list[Waiting] = []
    for block, shape in zip(blocks_of(model, family), masks.layout.blocks, strict=True):
        s1, s2, s3, s4, s5, *heads = (next(parts) for _ in masks.layout.sites)
        stays = [next(kept) for _ in masks.layout.sites]
        through, heard = None, torch.ones(shape.q, dtype=torch.bool)
        if heads:
            through, heard = (
                of_head.repeat_interleave(shape.q // shape.heads)
                for of_head in (heads[0], stays[-1])
            )
        for branch, reads, writes, out, remaining in (
            (family.attention, s1, through, s2, heard),
            (family.mlp, s3, s4, s5, stays[3]),
        ):
            for path in branch.reads:
                _replace(linear_at(block, path), reads, None, None, before)
            mean = next(means, None)
            gone = None if mean is None else mean.masked_fill(remaining, 0.0)
            _replace(linear_at(block, branch.writes), writes, out, gone, before)
    try:
        yield
    finally:
        for linear, name, parameter, device in before:
            setattr(linear, name, parameter)
            if parameter is not None:
                parameter.data = parameter.data.to(device)


def writer_widths(layout: Layout) -> list[int]:
    """Inputs of the layers that write, block by block: attention's, then the MLP's."""
    return [width for block in layout.blocks for width in (block.q, block.intermediate)]


def _replace(
    linear: Any,
    inputs: Tensor | None,
    outputs: Tensor | None,
    gone: Tensor | None,
    before: list[Waiting],
) -> None:
    """Gives a layer scaled weights and a bias that carries the mean inputs that have gone; what was
    there is appended to `before`."""
    device, dtype = linear.weight.device, linear.weight.dtype
    weight = matrix_of(linear).float()
    bias = None if linear.bias is None else linear.bias.detach().float()
    if gone is not None:
        added = weight @ gone.to(device)
        bias = added if bias is None else bias + added
    if inputs is not None:
        weight = weight * inputs.to(device)
    if outputs is not None:
        weight = weight * outputs.to(device)[:, None]
        bias = None if bias is None else bias * outputs.to(device)
    made = {"weight": (weight.T if is_turned(linear) else weight).contiguous(), "bias": bias}
    for name, new in made.items():
        if new is not None:
            old = getattr(linear, name)
            before.append((linear, name, old, device))
            setattr(linear, name, nn.Parameter(new.to(dtype), requires_grad=False))
            if old is not None:
                old.data = old.data.cpu()


def compact_config(model: PreTrainedModel, family: Family, masks: Masks):
    """The native configuration with the widths of every block and the names of its classes."""
    native = type(model.config)
    base, causal = model_classes(native)
    sites = masks.layout.sites
    widths = masks.layout.counts(masks.kept.long()).view(-1, len(sites)).T.tolist()
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "quantization_config", "transformers_version"):
        values.pop(key, None)
    values["disp_llm"] = family.as_dict() | {"widths": dict(zip(sites, widths, strict=True))}
    if masks.compensation.means is not None:
        values["disp_llm"]["biases"] = True
    values["auto_map"] = {
        "AutoConfig": f"configuration_disp_llm.{PREFIX}{native.__name__}",
        "AutoModel": f"modeling_disp_llm.{base.__name__}",
        "AutoModelForCausalLM": f"modeling_disp_llm.{causal.__name__}",
    }
    config = config_class(native)(**copy.deepcopy(values))
    config._name_or_path = getattr(model.config, "_name_or_path", "")
    return config


def compact_state(model: PreTrainedModel, family: Family, masks: Masks) -> dict[str, Tensor]:
    """The state of the compact model: kept slices, index buffers, and all the rest by reference."""
    state = dict(model.state_dict())
    names = {id(module): name for name, module in model.named_modules()}
    indices = masks.indices()
    for i, block in enumerate(blocks_of(model, family)):
        s1, s2, s3, s4, s5 = (indices[f"layers.{i}.{site}"] for site in SITES)
        middle = torch.cat(
            [s4 + piece * masks.layout.blocks[i].intermediate for piece in range(family.mlp.fused)]
        )
        shape, heads = masks.layout.blocks[i], indices.get(f"layers.{i}.{HEADS}")
        for branch, kept_in, kept_out, outputs, inputs in (
            (family.attention, s1, s2, None, _of_heads(heads, shape.heads, shape.q)),
            (family.mlp, s3, s5, middle, s4),
        ):
            for path in branch.reads:
                linear = block.get_submodule(path)
                if heads is not None and branch is family.attention:
                    outputs = _of_heads(heads, shape.heads, widths_of(linear)[1])
                _slice(state, linear, names, kept_in, outputs)
            _slice(state, block.get_submodule(branch.writes), names, inputs, kept_out)
            _index(state, block, branch, names, kept_in, kept_out, masks.layout.blocks[i].hidden)
    return state


def _of_heads(kept: Tensor | None, heads: int, width: int) -> Tensor | None:
    """Which of `width` numbers, laid out KV head by KV head, belong to the kept; None = all."""
    if kept is None:
        return None
    each = width // heads
    return (kept[:, None] * each + torch.arange(each)).flatten()


def _slice(
    state: dict[str, Tensor],
    linear: Any,
    names: dict[int, str],
    inputs: Tensor | None,
    outputs: Tensor | None,
) -> None:
    """Replaces a linear layer's weight and bias by the kept inputs and outputs (None = all)."""
    name, device = names[id(linear)], linear.weight.device
    weight = linear.weight.detach()
    input_dim, output_dim = (0, 1) if is_turned(linear) else (1, 0)
    if inputs is not None:
        weight = weight.index_select(input_dim, inputs.to(device))
    if outputs is not None:
        weight = weight.index_select(output_dim, outputs.to(device))
        if linear.bias is not None:
            state[f"{name}.bias"] = linear.bias.detach().index_select(0, outputs.to(device))
    state[f"{name}.weight"] = weight


def _index(
    state: dict[str, Tensor],
    block: nn.Module,
    branch: Branch,
    names: dict[int, str],
    kept_in: Tensor,
    kept_out: Tensor,
    hidden: int,
) -> None:
    for path, buffer, kept in (
        (branch.gather, "kept_in", kept_in),
        (branch.scatter, "kept_out", kept_out),
    ):
        if len(kept) < hidden:
            name = names[id(block.get_submodule(path))]
            state[f"{name}.{buffer}"] = kept
            if path in (*branch.reads, branch.writes):  # a bare layer, which moves into a holder
                for part in ("weight", "bias"):
                    if f"{name}.{part}" in state:
                        state[f"{name}.linear.{part}"] = state.pop(f"{name}.{part}")


def compact_model(model: PreTrainedModel, family: Family, masks: Masks) -> PreTrainedModel:
    """The smaller model itself, on the device and in the dtype of the dense one."""
    config = compact_config(model, family, masks)
    _, causal = model_classes(type(model.config))
    dtype = next(model.parameters()).dtype
    made = causal.from_pretrained(
        None, config=config, state_dict=compact_state(model, family, masks), dtype=dtype
    )
    made.generation_config = copy.deepcopy(model.generation_config)
    made.eval().requires_grad_(False)
    return made.to(next(model.parameters()).device)


@dataclass(frozen=True)
class Exported:
    """What lies in an exported folder."""

    folder: Path
    parameters: int
    bytes: int
    """Of the weight files."""


def export(
    model: PreTrainedModel,
    tokenizer,
    family: Family,
    masks: Masks,
    folder: Path,
    max_shard_size: str,
) -> Exported:
    """Writes the folder, whole or not at all; a folder of the same name is replaced.

    Raises:
        InputError: it cannot be written.
    """
    return write_folder(compact_model(model, family, masks), tokenizer, folder, max_shard_size)


def write_folder(
    compact: PreTrainedModel, tokenizer, folder: Path, max_shard_size: str
) -> Exported:
    """Writes a model with its tokenizer, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with atomic(folder) as temporary:
        compact.save_pretrained(temporary, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(temporary)
    return Exported(folder, count_parameters(compact), weight_bytes(folder))


def added_biases(masks: Masks, family: Family, model: PreTrainedModel) -> int:
    """Numbers of biases that the compact model has and the dense one has not."""
    if masks.compensation.means is None:
        return 0
    counts = masks.layout.counts(masks.kept.long()).view(len(masks.layout.blocks), -1).tolist()
    return sum(
        count[site]
        for block, count in zip(blocks_of(model, family), counts, strict=True)
        for branch, site in ((family.attention, 1), (family.mlp, 4))
        if linear_at(block, branch.writes).bias is None
    )


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_block_parameters(model: PreTrainedModel, family: Family) -> int:
    """Weights of the linear layers inside the blocks, counted on the model itself."""
    branches = (family.attention, family.mlp)
    return sum(
        weight_of(block, path).numel()
        for block in blocks_of(model, family)
        for branch in branches
        for path in (*branch.reads, branch.writes)
    )


def weight_of(block: nn.Module, path: str) -> Tensor:
    """The weight of a linear layer of a block."""
    weight = linear_at(block, path).weight
    assert isinstance(weight, Tensor), path
    return weight


def head_weight(model: PreTrainedModel) -> Tensor:
    """The weight that turns hidden states into logits, (vocabulary, hidden)."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal model without a head"
    assert isinstance(head.weight, Tensor)
    return head.weight


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
