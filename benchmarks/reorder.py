"""The same model with its channels in another order, which a quantiser's groups cannot follow.

SmolLM2 is embedded as a file of 4 to 6 bits, whose groups of 32 inputs are those of int4: rounded
once, they hardly change when they are rounded again. Here the dimensions of the residual stream,
the intermediate channels of every block and the values of every head change places. The function
is the same (sums are taken in another order), and so are the weights one by one; only the groups
are others, as they are in a model whose file nobody had rounded.

    python benchmarks/reorder.py smollm2-135m OUT
"""

import argparse

import torch
from torch import nn

from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load


def main() -> None:
    """Writes the reordered model and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Llama")
    parser.add_argument("out")
    arguments = parser.parse_args()
    loaded = load(arguments.model, MachineConfig(dtype="auto"))
    reorder(loaded.model, torch.Generator().manual_seed(0))
    loaded.model.save_pretrained(arguments.out)
    loaded.tokenizer.save_pretrained(arguments.out)


@torch.no_grad()
def reorder(model: nn.Module, generator: torch.Generator) -> None:
    """Reorders a Llama in place: residual dimensions, intermediate channels, values of heads."""
    config, body = model.config, model.model
    stream = torch.randperm(config.hidden_size, generator=generator)
    tables = {id(layer.weight): layer for layer in (body.embed_tokens, model.lm_head)}
    columns, rows = list(tables.values()), []  # a head that is tied is reordered once
    vectors = [body.norm]
    for block in body.layers:
        attention, mlp = block.self_attn, block.mlp
        vectors += [block.input_layernorm, block.post_attention_layernorm]
        columns += [attention.q_proj, attention.k_proj, attention.v_proj]
        columns += [mlp.gate_proj, mlp.up_proj]
        rows += [attention.o_proj, mlp.down_proj]
        middle = torch.randperm(config.intermediate_size, generator=generator)
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight.copy_(layer.weight[middle])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, middle])
        in_head = torch.randperm(attention.head_dim, generator=generator)
        values = attention.v_proj.weight.unflatten(0, (-1, attention.head_dim))
        values.copy_(values[:, in_head])
        read = attention.o_proj.weight.unflatten(1, (-1, attention.head_dim))
        read.copy_(read[:, :, in_head])
    for layer in columns:
        layer.weight.copy_(layer.weight[:, stream])
    for layer in (*rows, *vectors):
        layer.weight.copy_(layer.weight[stream])


if __name__ == "__main__":
    main()
