"""A model without weights that gets them one by one."""

import accelerate
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel


def computed_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """The numbers of a model that no file holds and that it computes itself, such as rotary
    frequencies: by name, those of its configuration."""
    with accelerate.init_empty_weights(include_buffers=False):
        skeleton = transformers.AutoModelForCausalLM.from_config(
            model.config, dtype=model.dtype, trust_remote_code=False
        )
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in skeleton.named_buffers() if name not in stored}


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Gives a model one of its parameters or buffers."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[key] = tensor
