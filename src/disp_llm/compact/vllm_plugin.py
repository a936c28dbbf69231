"""vLLM's door: with this package installed, `vllm serve FOLDER` needs no flag.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). The
folder then runs in vLLM's own Transformers backend, which fuses and shards the native layers that
it finds.
"""

import importlib

from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.families import FAMILIES

BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"


def register() -> None:
    """Tells vLLM which engine class runs `DispLlamaForCausalLM` and its like."""
    registry = importlib.import_module("vllm").ModelRegistry
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for model_type in FAMILIES:
        native = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        if native is not None:
            registry.register_model(PREFIX + native, BACKEND)
