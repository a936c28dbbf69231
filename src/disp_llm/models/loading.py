"""A hub id, a folder or the embedded default -> model, tokenizer and row of the table.

transformers loads the models as they are. Weights are frozen and dropout is off.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.parts import MachineConfig
from disp_llm.models import embedded
from disp_llm.models.architectures import PRUNED_PREFIX, Family, family_of, row_of
from disp_llm.models.devices import resolve_device, resolve_dtype
from disp_llm.models.source import HUB_ERRORS, source_of
from disp_llm.models.windows import required_bos

logger = logging.getLogger(__name__)

GGUF_CONFIG = getattr(transformers, "GgufConfig", None)
"""Newer transformers leave GGUF weights packed unless told otherwise; older ones always unpack."""


@dataclass(frozen=True)
class Loaded:
    """A frozen model, ready to run."""

    model: PreTrainedModel
    tokenizer: Any
    family: Family
    source: dict[str, str]
    """Name and revision, for provenance."""
    dtype: torch.dtype
    """The data type that it was loaded in."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that every window begins with, where the model needs one."""
        return required_bos(self.model, self.family)


def load_config(name: str) -> transformers.PreTrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        InputError: there is no such model, or it is not readable.
    """
    arguments = _arguments(name)
    try:
        return transformers.AutoConfig.from_pretrained(**arguments)
    except HUB_ERRORS as error:
        raise _not_loadable(name, error) from error


def load(name: str, machine: MachineConfig, dense_only: bool = False) -> Loaded:
    """Loads a model with its tokenizer.

    Args:
        dense_only: whether a pruned or quantised model is refused.

    Raises:
        InputError: no such model, an unknown architecture, or damaged files.
    """
    config = load_config(name)
    family = family_of(config) if dense_only else family_of_any(config)
    if dense_only:
        _refuse_quantised(name, config)
    device = resolve_device(machine.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_arguments(name))
    except HUB_ERRORS as error:
        raise _not_loadable(name, error, "the tokenizer of ") from error
    dtype = resolve_dtype(machine.dtype, device)
    stored = getattr(config, "dtype", None)
    if machine.dtype == "auto" and stored not in (None, dtype):
        logger.warning("%s is stored in %s and runs in %s, see `dtype`", name, stored, dtype)
    model = load_model(name, device, dtype)
    return Loaded(model, tokenizer, family, source_of(name, config), dtype)


def _refuse_quantised(name: str, config: transformers.PreTrainedConfig) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise InputError(
            f"{name} is quantised {kind}".rstrip(),
            field="model",
            hint="name the model that it was made from",
        )


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model alone, frozen and without dropout.

    Raises:
        InputError: it cannot be loaded.
    """
    arguments = _arguments(name)
    if "gguf_file" in arguments and GGUF_CONFIG is not None:
        arguments["quantization_config"] = GGUF_CONFIG(dequantize=True)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(**arguments, dtype=dtype)
    except HUB_ERRORS as error:
        raise _not_loadable(name, error) from error
    if "gguf_file" in arguments:  # unpacked, so no longer quantised
        model.config.__dict__.pop("quantization_config", None)
    model.eval().requires_grad_(False)
    return model.to(device)


def family_of_any(config: transformers.PreTrainedConfig) -> Family:
    """The row of a dense or of a pruned model's configuration.

    Raises:
        InputError: the architecture is not in the table.
    """
    return row_of(config.model_type.removeprefix(PRUNED_PREFIX)) or family_of(config)


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: it has shapes and no weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _arguments(name: str) -> dict[str, Any]:
    """What `from_pretrained` needs to find a model; a GGUF file is named inside its folder."""
    path = embedded.model_file() if name == embedded.MODEL else Path(name)
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": name}


def _not_loadable(name: str, error: Exception, part: str = "") -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    why = lines[0].strip(" .:") if lines else type(error).__name__
    return InputError(
        f"cannot load {part}'{name}'{nearest(name, [embedded.MODEL])} ({why})",
        field="model",
        hint=f"name a hub id that can be reached, a model folder, or {embedded.MODEL}",
    )
