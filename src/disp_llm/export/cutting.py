"""Model + masks -> the smaller model: its configuration, its state, and the model itself.

The kept rows and columns of the block linears are copied into the shapes of the compact classes,
everything else is taken over as it is.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from disp_llm.compact import config_class, model_classes
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.compact.modeling_disp_llm import is_conv1d, widths_of
from disp_llm.config.names import BRANCHES, HEADS, SITES
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.architectures import Branch


def compact_config(target: PrunableModel, masks: Masks) -> PreTrainedConfig:
    """The native configuration with the widths of every block and the names of its classes."""
    model = target.model
    native = type(model.config)
    base, causal = model_classes(native)
    sites = masks.layout.sites
    widths = masks.counts.view(-1, len(sites)).T.tolist()
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "quantization_config", "transformers_version"):
        values.pop(key, None)
    values["disp_llm"] = target.family.as_dict() | {"widths": dict(zip(sites, widths, strict=True))}
    if masks.compensation.mean_inputs is not None:
        values["disp_llm"]["biases"] = True
    if masks.heads_pruned:
        values |= heads_by_layer(model.config, masks)
    values["auto_map"] = {
        "AutoConfig": f"configuration_disp_llm.{PREFIX}{native.__name__}",
        "AutoModel": f"modeling_disp_llm.{base.__name__}",
        "AutoModelForCausalLM": f"modeling_disp_llm.{causal.__name__}",
    }
    config = config_class(native)(**copy.deepcopy(values))
    config._name_or_path = getattr(model.config, "_name_or_path", "")
    return config


def heads_by_layer(config: PreTrainedConfig, masks: Masks) -> dict[str, Any]:
    """How transformers and engines are told that layers have heads of different number: what vLLM
    makes room for in its cache. The numbers of the whole model remain the original's."""
    heads, groups = masks.layout.blocks[0].heads, config.get_text_config().num_attention_heads
    kept = masks.of_site(HEADS).tolist()
    changed = {i: number for i, number in enumerate(kept) if 0 < number < heads}
    return {
        "per_layer_config": {
            i: {"num_key_value_heads": number, "num_attention_heads": number * groups // heads}
            for i, number in changed.items()
        },
        "allow_global_per_layer_attribute_access": True,
    }


def compact_state(target: PrunableModel, masks: Masks) -> dict[str, Tensor]:
    """The state of the compact model: kept slices, index buffers, and all the rest by reference."""
    model = target.model
    names = {id(module): name for name, module in model.named_modules()}
    state = State(dict(model.state_dict()), names)
    indices = masks.indices()
    for i, (block, shape) in enumerate(zip(target.blocks, masks.layout.blocks, strict=True)):
        attention, mlp = target.branches_of(block)
        s1, s2, s3, s4, s5 = (indices[f"layers.{i}.{site}"] for site in SITES)
        heads = indices.get(f"layers.{i}.{HEADS}")
        for path in attention.reads:
            linear = block.get_submodule(path)
            state.cut(linear, s1, _of_heads(heads, shape.heads, widths_of(linear)[1]))
        state.cut(block.get_submodule(attention.writes), _of_heads(heads, shape.heads, shape.q), s2)
        state.add_indices(block, attention, (s1, s2), shape.hidden)
        middle = torch.cat([s4 + n * shape.intermediate for n in range(mlp.fused)])
        for path in mlp.reads:
            state.cut(block.get_submodule(path), s3, middle)
        state.cut(block.get_submodule(mlp.writes), s4, s5)
        state.add_indices(block, mlp, (s3, s5), shape.hidden)
        for name, branch in zip(BRANCHES, (attention, mlp), strict=True):
            if shape.branches and not len(indices[f"layers.{i}.{name}"]):
                state.drop(block, branch)
    return state.tensors


def _of_heads(kept: Tensor | None, heads: int, width: int) -> Tensor | None:
    """Which of `width` numbers, laid out KV head by KV head, belong to kept heads; None = all."""
    if kept is None:
        return None
    each = width // heads
    return (kept[:, None] * each + torch.arange(each)).flatten()


@dataclass(frozen=True)
class State:
    """The tensors of a model by name, on the way to those of its compact model."""

    tensors: dict[str, Tensor]
    names: dict[int, str]
    """Name of every module of the model, by the module's `id`."""

    def cut(self, linear: Any, inputs: Tensor | None, outputs: Tensor | None) -> None:
        """Replaces a linear layer's weight and bias by the kept inputs and outputs (None = all)."""
        name, device = self.names[id(linear)], linear.weight.device
        weight = linear.weight.detach()
        input_dim, output_dim = (0, 1) if is_conv1d(linear) else (1, 0)
        if inputs is not None:
            weight = weight.index_select(input_dim, inputs.to(device))
        if outputs is not None:
            weight = weight.index_select(output_dim, outputs.to(device))
            if linear.bias is not None:
                bias = linear.bias.detach().index_select(0, outputs.to(device))
                self.tensors[f"{name}.bias"] = bias
        self.tensors[f"{name}.weight"] = weight

    def add_indices(
        self, block: nn.Module, branch: Branch, kept: tuple[Tensor, Tensor], hidden: int
    ) -> None:
        """Adds the buffers of a branch's gather and scatter, where these are not whole."""
        places = ((branch.gather, "kept_in"), (branch.scatter, "kept_out"))
        for (path, buffer), indices in zip(places, kept, strict=True):
            if len(indices) < hidden:
                name = self.names[id(block.get_submodule(path))]
                self.tensors[f"{name}.{buffer}"] = indices
                if path in (*branch.reads, branch.writes):  # a bare layer, which is then wrapped
                    self._wrap(name)

    def drop(self, block: nn.Module, branch: Branch) -> None:
        """Takes out all tensors of a branch and its norms."""
        gone = {branch.gather, branch.scatter, *branch.norms}
        modules = [module for path, module in block.named_modules() if path in gone]
        prefixes = tuple(f"{self.names[id(module)]}." for module in modules)
        for name in [name for name in self.tensors if name.startswith(prefixes)]:
            del self.tensors[name]

    def _wrap(self, name: str) -> None:
        """Moves the parameters of a linear layer to where a `LinearWrapper` has them."""
        for part in ("weight", "bias"):
            if f"{name}.{part}" in self.tensors:
                self.tensors[f"{name}.linear.{part}"] = self.tensors.pop(f"{name}.{part}")


def compact_model(target: PrunableModel, masks: Masks) -> PreTrainedModel:
    """The smaller model itself, on the device and in the dtype of the dense one."""
    config = compact_config(target, masks)
    _, causal = model_classes(type(target.model.config))
    state = compact_state(target, masks)
    made = causal.from_pretrained(None, config=config, state_dict=state, dtype=target.dtype)
    made.generation_config = copy.deepcopy(target.model.generation_config)
    made.eval().requires_grad_(False)
    return made.to(target.device)
