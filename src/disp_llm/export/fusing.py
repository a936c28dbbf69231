"""For inference: the projections of one input (q, k, v; gate, up) become one matrix product.

On a CPU a product of few rows has a cost of its own beside that of its bytes. Layers keep class and
name; their weights become slices of one tensor, so nothing is stored twice. The first layer of a
group computes all and the others hand out their part, which is right as long as a block calls them
in their order on one input, as those of transformers do. It is not for training, adapters or
quantisers, which need each layer by itself; vLLM does the same on its own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import family_of_any


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """Fuses a dense or pruned model in place and returns it.

    Branches whose input only one layer reads stay as they are.

    Raises:
        InputError: the architecture is not in the table.
    """
    target = PrunableModel(model, family_of_any(model.config))
    for block, branch in target.present:
        layers = [linear_at(block, path) for path in branch.reads]
        if len(layers) > 1 and all(type(layer) is nn.Linear for layer in layers):
            _join(layers)
    return model


def is_fused(model: nn.Module) -> bool:
    """Whether layers of a model compute each other's outputs."""
    forwards = (vars(module).get("forward") for module in model.modules())
    return any(getattr(forward, "__module__", "") == __name__ for forward in forwards)


def _join(layers: list[Any]) -> None:
    """Makes the first layer compute the outputs of all, and the others hand out their own."""
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias for layer in layers]
    bias = None
    if any(own is not None for own in biases):
        bias = torch.cat(
            [
                weight.new_zeros(size) if own is None else own.detach()
                for own, size in zip(biases, sizes, strict=True)
            ]
        )
    for layer, part in zip(layers, weight.split(sizes), strict=True):
        layer.weight.data = part
    waiting: list[Tensor] = []

    def first(inputs: Tensor) -> Tensor:
        if layers[0].weight.data_ptr() != weight.data_ptr():
            raise RuntimeError("the model was moved or cast after fuse(); fuse it again")
        own, *others = nn.functional.linear(inputs, weight, bias).split(sizes, -1)
        waiting[:] = others
        return own

    layers[0].forward = first
    for layer in layers[1:]:
        layer.forward = lambda inputs: waiting.pop(0)
