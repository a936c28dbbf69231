"""How large a model can say that it is: what lies far beyond any that was made would be counted for
hours, before anything says that it does not fit."""

import transformers

from disp_llm.config.errors import InputError

LARGEST = {
    "num_hidden_layers": 1000,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "moe_intermediate_size": 2**18,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "vocab_size": 2**25,
    "num_experts": 2**14,
    "num_local_experts": 2**14,
    "n_routed_experts": 2**14,
}
"""Of Llama 3.1 405B: 126 layers, hidden 16,384, intermediate 53,248."""

MOST_WIDE = 2**25
"""Dimensions of all layers together, twice those of that model."""


def require_possible_size(name: str, config: transformers.PreTrainedConfig) -> None:
    """Refuses a configuration that says absurd numbers.

    Raises:
        InputError: naming the number.
    """
    parts = (getattr(config, part, None) for part in config.sub_configs)
    for part in (config, *filter(None, parts)):
        written = part.to_dict()  # as attributes some are none, where layers differ
        found = {key: _whole(written.get(part.attribute_map.get(key, key))) for key in LARGEST}
        widths = 4 * found["hidden_size"] + found["intermediate_size"]
        said = [(key, value, LARGEST[key]) for key, value in found.items()]
        for key, value, most in (
            *said,
            ("num_hidden_layers × widths", found["num_hidden_layers"] * widths, MOST_WIDE),
        ):
            if value > most:
                raise InputError(
                    f"'{name}' says {key} = {value:,}, and at most {most:,} is read",
                    field="model",
                    hint="correct its config.json",
                )


def _whole(said: object) -> int:
    """A number, or the largest of several; what is none is for who reads it."""
    numbers = said if isinstance(said, list | tuple) else [said]
    return max((number for number in numbers if isinstance(number, int)), default=0)
