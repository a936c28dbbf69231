"""Builds the smaller model in memory from model and masks: configuration, state, and the model.

Kept rows and columns of the blocks' linear layers are copied into the shapes of the compact
classes, by the plan (`plan.py`); everything else is taken over unchanged.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from disp_llm.compact import auto_classes, model_classes
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.config.names import HEADS
from disp_llm.exporter.parts import Cut, made
from disp_llm.exporter.plan import cuts_of, plan_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks


def compact_config(target: PrunableModel, masks: Masks) -> PreTrainedConfig:
    """Returns the native configuration with the widths of every block and the compact classes."""
    model = target.model
    native = type(model.config)
    base, causal = model_classes(native)
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "quantization_config", "transformers_version"):
        values.pop(key, None)
    values["disp_llm"] = target.family.as_dict() | {"widths": masks.widths}
    if masks.chunk > 1:
        values["disp_llm"]["chunk"] = masks.chunk
    if masks.compensation.mean_inputs is not None:
        values["disp_llm"]["biases"] = True
    if HEADS in masks.layout.sites and target.family.alternatives:
        values["disp_llm"]["heads"] = [block.heads for block in masks.layout.blocks]
    if (scale := target.logit_scale) != 1:
        values["disp_llm"]["logit_scale"] = scale
    if masks.heads_pruned:
        text = values["text_config"] if target.family.tower else values
        text |= heads_by_layer(model.config, masks)
    values["auto_map"] = {
        "AutoConfig": f"configuration_disp_llm.{PREFIX}{native.__name__}",
        "AutoModel": f"modeling_disp_llm.{base.__name__}",
    } | dict.fromkeys(auto_classes(native), f"modeling_disp_llm.{causal.__name__}")
    config = causal.config_class(**copy.deepcopy(values))
    config._name_or_path = getattr(model.config, "_name_or_path", "")
    return config


def heads_by_layer(config: PreTrainedConfig, masks: Masks) -> dict[str, Any]:
    """Returns the configuration keys by which transformers and engines learn how many heads a block
    has kept (vLLM sizes its KV cache by them). The model-wide numbers remain the original's."""
    numbers, kept = head_counts(config.get_text_config()), masks.of_site(HEADS).tolist()
    return {
        "per_layer_config": {
            i: {name: number * left // block.heads for name, number in numbers.items()}
            for i, (left, block) in enumerate(zip(kept, masks.layout.blocks, strict=True))
            if block.cached and 0 < left < block.heads
        },
        "allow_global_per_layer_attribute_access": True,
    }


def head_counts(config: PreTrainedConfig) -> dict[str, int]:
    """Numbers of KV and query heads by their configuration keys; BioGPT states the second alone."""
    stated = ("num_key_value_heads", "num_attention_heads")
    return {name: getattr(config, name) for name in stated if getattr(config, name, None)}


def compact_state(target: PrunableModel, masks: Masks) -> dict[str, Tensor]:
    """Returns the compact model's state from the dense model's present weights: kept slices, index
    buffers, and all other tensors by reference."""
    state = target.model.state_dict()
    return {name: made(part, state.__getitem__) for name, part in cuts_of(target, masks).items()}


def compact_model(target: PrunableModel, masks: Masks) -> PreTrainedModel:
    """Builds the smaller model, on the device and in the dtype of the dense one."""
    config = compact_config(target, masks)
    _, causal = model_classes(type(target.model.config))
    state = compact_state(target, masks)
    compact = causal.from_pretrained(None, config=config, state_dict=state, dtype=target.dtype)
    return _finished(compact, target).to(target.device)


def empty_compact_model(target: PrunableModel, masks: Masks) -> PreTrainedModel:
    """Builds the smaller model without weights, on the meta device."""
    config = compact_config(target, masks)
    _, causal = model_classes(type(target.model.config))
    with torch.device("meta"):
        empty = causal(config).to(target.dtype)
    state = target.model.state_dict()
    for name, tensor in (*empty.named_parameters(), *empty.named_buffers()):
        if name in state:  # some families keep a few tensors in float32
            tensor.data = tensor.data.to(state[name].dtype)
    return _finished(empty, target)


def _finished(compact: Any, target: PrunableModel) -> Any:
    """Freezes the compact model in evaluation mode, with the dense one's generation config."""
    compact.generation_config = copy.deepcopy(target.model.generation_config)
    return compact.eval().requires_grad_(False)


@contextlib.contextmanager
def fold_into_weights(target: PrunableModel, masks: Masks) -> Iterator[None]:
    """Folds the selection's compensation into the blocks' weights while the context lasts.

    Adapters are added first. A scale of attn_in or mlp_in multiplies the columns of all layers that
    read there; one of mlp_mid, the columns of the layer that writes; one of attn_out or mlp_out,
    that layer's rows and bias; one of a whole branch or expert, all of these rows. What pruned
    columns of a writing layer would have added on average is added to its bias. Products are
    rounded to the model's dtype: what is then masked is what is then exported. On a GPU the
    original weights wait in CPU memory.
    """
    with contextlib.ExitStack() as stack:
        if masks.compensation:
            parts = [part for part in plan_of(target, masks).values() if isinstance(part, Cut)]
            parts.sort(
                key=lambda part: part.means is None
            )  # biases first: they are made of the original weights
            for part in parts:
                if part.changes:
                    stack.enter_context(_replaced(target.model, part))
        yield


@contextlib.contextmanager
def _replaced(model: nn.Module, part: Cut) -> Iterator[None]:
    """Replaces a parameter while the context lasts; on a GPU the old one waits on the CPU."""
    new = part.changed(lambda name: model.get_parameter(name).detach())
    path, _, name = part.source.rpartition(".")
    module: Any = model.get_submodule(path)
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(new, requires_grad=False))
    if old is not None:
        old.data = old.data.cpu()
    try:
        yield
    finally:
        setattr(module, name, old)
        if old is not None:
            old.data = old.data.to(new.device)
