"""Registers exported folders with vLLM, so that `vllm serve FOLDER` needs no flag.

With this package installed, vLLM calls `register` in each of its processes (entry point group
`vllm.general_plugins`). The folder then runs in vLLM's own Transformers backend, which fuses and
shards the native layers that it finds.
"""

import functools
import importlib
from typing import Any

from disp_llm.compact import model_classes
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.models.architectures import model_types

ENGINE = "TransformersForCausalLM"


def register() -> None:
    """Tells vLLM which engine class runs `DispLlamaForCausalLM` and its like."""
    registry = importlib.import_module("vllm").ModelRegistry
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for model_type in model_types():
        native = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        if native is not None:
            registry.register_model(PREFIX + native, f"{__name__}:{ENGINE}")


def __getattr__(name: str) -> Any:
    """Returns the engine class, in each process that runs one of our models.

    A process that received its configuration from another process has not loaded a folder, so this
    first registers every architecture with the auto classes. Processes that run other models never
    call this.
    """
    if name != ENGINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    for model_type in model_types():
        if model_type in auto.CONFIG_MAPPING_NAMES:
            model_classes(auto.CONFIG_MAPPING[model_type])
    _int8_of_any_rank()
    return getattr(importlib.import_module("vllm.model_executor.models.transformers"), ENGINE)


@functools.cache
def _int8_of_any_rank() -> None:
    """Lets vLLM's int8 kernel for processors with AMX accept inputs of its Transformers backend.

    Their shape is (1, tokens, width), for which vLLM 0.32 raises "mat1 must be a 2D tensor" in this
    kernel alone; its kernels for other processors flatten their inputs. Versions without this
    kernel stay unchanged.
    """
    try:
        kernels = importlib.import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    except ImportError:  # this version has its kernels elsewhere
        return
    kernel = getattr(kernels, "CPUInt8ScaledMMLinearKernel", None)
    of_matrices = getattr(kernel, "_apply_weights_sgl", None)
    if kernel is None or of_matrices is None:
        return

    def apply(self: Any, layer: Any, inputs: Any, bias: Any = None) -> Any:
        found = of_matrices(self, layer, inputs.flatten(0, -2), bias)
        return found.unflatten(0, inputs.shape[:-1])

    kernel._apply_weights_sgl = apply
