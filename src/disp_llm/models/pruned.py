"""What the configuration of an exported folder says of its widths, checked before it is used."""

from dataclasses import dataclass, field, fields
from typing import Annotated

import msgspec
from transformers import PreTrainedConfig

from disp_llm.config.errors import InputError
from disp_llm.config.schema import as_type
from disp_llm.models.architectures import Branch

Width = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class Widths:
    """What every block has left of each site, one number a block."""

    attn_in: list[Width]
    attn_out: list[Width]
    mlp_in: list[Width]
    mlp_mid: list[Width]
    mlp_out: list[Width]
    heads: list[Width] = field(default_factory=list)
    """KV heads, where some are pruned."""


@dataclass(frozen=True)
class Pruned:
    """The entry `disp_llm`, as `compact/configuration_disp_llm.py` describes it."""

    blocks: str
    attention: Branch
    mlp: Branch
    widths: Widths
    biases: bool = False


@dataclass(frozen=True)
class PrunedConfig:
    """The part of a configuration that is ours."""

    disp_llm: Pruned


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
    known, blocks = [site.name for site in fields(Widths)], config.get_text_config()
    for site, widths in stated["widths"].items():
        wrong = f"{len(widths)} widths for {blocks.num_hidden_layers} blocks"
        if site not in known:
            wrong = f"is no site, they are {', '.join(known)}"
        elif len(widths) == blocks.num_hidden_layers:
            continue
        raise InputError(f"disp_llm.widths.{site}: {wrong}", field=file, hint=hint)
