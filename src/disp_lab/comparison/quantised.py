"""Copies a model with its blocks' linear layers stored in 8 or 4 bits, by torchao.

Only weights are quantised: int8 with a scale per row, int4 in groups of 32 inputs with scales
chosen by HQQ. The embedding, the head and the norms stay as they are, and so do layers that the
kernel cannot pack: int4 packs 32 inputs and 16 outputs together, so widths of a pruned model should
be multiples of 32.
"""

import copy
from typing import Any

from torch import nn

from disp_llm.config.errors import InputError
from disp_llm.config.names import WeightKind
from disp_llm.masks.prunable import PrunableModel

GROUP, ROWS = 32, 16
"""Inputs that share an int4 scale, and outputs that its kernel takes together."""


def quantised(target: PrunableModel, kind: WeightKind) -> tuple[PrunableModel, int]:
    """Returns a copy with quantised blocks, and how many of their linear layers were not quantised.

    Raises:
        InputError: torchao is not installed, or no layer can be quantised.
    """
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise InputError(
            "needs torchao, which is not installed", field=kind, hint="`pip install torchao`"
        ) from error
    made = PrunableModel(copy.deepcopy(target.model), target.family, target.sites)
    layers = list(made.linears())
    fitting = {id(layer) for layer in layers if _fits(layer, kind)}
    if not fitting:
        raise InputError(
            f"no layer of {target.model.config.model_type} can be stored so",
            field=kind,
            hint="leave it out",
        )
    quantize_(made.model, _settings(kind), lambda module, name: id(module) in fitting)
    return made, len(layers) - len(fitting)


def _fits(layer: Any, kind: WeightKind) -> bool:
    if not isinstance(layer, nn.Linear):
        return False
    return kind == "int8" or not (layer.in_features % GROUP or layer.out_features % ROWS)


def _settings(kind: WeightKind) -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    if kind == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    return PrototypeInt4WeightOnlyConfig(
        GROUP, Int4ChooseQParamsAlgorithm.HQQ, set_inductor_config=False
    )
