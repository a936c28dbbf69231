"""What a configuration says of a model's sizes, checked before anything is counted or made."""

from dataclasses import dataclass, field, fields
from typing import Annotated

import msgspec
from transformers import PreTrainedConfig

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF
from disp_llm.config.schema import Count, as_type
from disp_llm.models.architectures import Branch

LARGEST = {
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 2**12),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 2**14),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 2**18),
    "num_hidden_layers": 1000,
    "hidden_size": 2**16,
    "vocab_size": 2**25,
}
"""What is far beyond any model would be counted for hours. Llama 3.1 405B has 126 layers, hidden
16,384, intermediate 53,248."""

MOST_WIDE = 2**25
"""Dimensions of all layers together, twice those of that model."""

Whether = Annotated[int, msgspec.Meta(ge=0, le=1)]
Neighbours = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class Widths:
    """What every block has left of each site, one number a block."""

    attn_in: list[Count]
    attn_out: list[Count]
    mlp_in: list[Count]
    mlp_mid: list[Count]
    mlp_out: list[Count]
    heads: list[Count] = field(default_factory=list)
    """KV heads, where some are pruned."""
    experts: list[Count] = field(default_factory=list)
    """Experts of mixtures, where some are pruned."""
    attention: list[Whether] = field(default_factory=list)
    """Which blocks have an attention, where some have none."""
    mlp: list[Whether] = field(default_factory=list)
    """Which blocks have an MLP, where some have none."""


@dataclass(frozen=True)
class Pruned:
    """The entry `disp_llm`, as `compact/configuration_disp_llm.py` describes it."""

    blocks: str
    attention: Branch
    mlp: Branch
    widths: Widths
    biases: bool = False
    chunk: Neighbours = 1
    """How many neighbours in the residual stream are selected together."""
    mixture: Branch | None = None
    alternatives: list[Branch] = field(default_factory=list)


@dataclass(frozen=True)
class PrunedConfig:
    """The part of a configuration that is ours."""

    disp_llm: Pruned


def require_possible_size(name: str, config: PreTrainedConfig) -> None:
    """Refuses a configuration that says absurd numbers.

    Raises:
        InputError: naming the number.
    """
    parts = (getattr(config, part, None) for part in config.sub_configs)
    for part in (config, *filter(None, parts)):
        written = part.to_dict()  # as attributes some are none, where layers differ
        found = {key: _largest(written.get(part.attribute_map.get(key, key))) for key in LARGEST}
        widths = 4 * found["hidden_size"] + found["intermediate_size"]
        found["num_hidden_layers × widths"] = found["num_hidden_layers"] * widths
        for key, value in found.items():
            most = LARGEST.get(key, MOST_WIDE)
            if value > most:
                raise InputError(
                    f"'{name}' says {key} = {value:,}, and at most {most:,} is read",
                    field="model",
                    hint="correct its config.json",
                )


def _largest(stated: object) -> int:
    """A number, or the largest of several; what is none is for who reads it."""
    numbers = stated if isinstance(stated, list | tuple) else [stated]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def require_widths(config: PreTrainedConfig, file: str, hint: str) -> None:
    """Refuses an entry `disp_llm` that no model of that configuration has.

    That a width is at most the original's is seen where the layers are cut, and that the weights
    have these widths when they are loaded.

    Args:
        file: where the configuration was read, for the message.
        hint: what to do about it.

    Raises:
        InputError: naming the entry.
    """
    stated = getattr(config, "disp_llm", None)
    as_type({"disp_llm": stated}, PrunedConfig, field=file, hint=hint)
    assert stated is not None
    known = [site.name for site in fields(Widths)]
    count = config.get_text_config().num_hidden_layers
    for site, widths in stated["widths"].items():
        wrong = ""
        if site not in known:
            wrong = f"is no site, they are {', '.join(known)}"
        elif len(widths) != count:
            wrong = f"{len(widths)} widths for {count} blocks"
        else:
            there = stated["widths"].get(BRANCH_OF[site]) or [1] * count
            for block, (width, kept) in enumerate(zip(widths, there, strict=True)):
                if (width > 0) != (kept > 0):
                    wrong = f"{width} in block {block}"
        if wrong:
            raise InputError(f"disp_llm.widths.{site}: {wrong}", field=file, hint=hint)
