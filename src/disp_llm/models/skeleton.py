"""A model without weights."""

from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.models.architectures import PRUNED_PREFIX
from disp_llm.models.wrappers import WRAPPERS


def auto_class(config: transformers.PreTrainedConfig) -> Any:
    """What makes the whole model of a configuration: of some wrappers the class for causal models
    would make the language model alone."""
    if config.model_type.removeprefix(PRUNED_PREFIX) in WRAPPERS:
        return transformers.AutoModelForMultimodalLM
    return transformers.AutoModelForCausalLM


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: it has shapes and no weights."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=False)


def computed_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """The numbers of a model that no file holds and that it computes itself, such as rotary
    frequencies: by name, those of its configuration."""
    with accelerate.init_empty_weights(include_buffers=False):
        skeleton = auto_class(model.config).from_config(
            model.config, dtype=model.dtype, trust_remote_code=False
        )
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in skeleton.named_buffers() if name not in stored}
