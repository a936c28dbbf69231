"""Which layers can be stored in 8 or 4 bits."""

from typing import Any

from torch import nn

from disp_llm.config.names import WeightKind

GROUP = 32
"""Inputs of a group of int4, which share a scale."""


def fits(layer: Any, kind: WeightKind, rows: int) -> bool:
    """Whether a layer can be stored so, by a kernel of int4 that takes groups of inputs and so many
    outputs together."""
    if not isinstance(layer, nn.Linear):
        return False
    return kind == "int8" or not (layer.in_features % GROUP or layer.out_features % rows)
