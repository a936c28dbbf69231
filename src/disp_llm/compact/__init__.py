"""What an exported folder carries, and how transformers comes to know it.

The two other files of this package are copied into every exported folder. `announce` makes
transformers' auto classes find them here, so that a folder loads without `trust_remote_code`.
"""

import importlib

from disp_llm.families import FAMILIES, PRUNED_PREFIX


def announce() -> None:
    """Puts a stand-in for the configuration of every family into transformers' table.

    A stand-in gives way to the real class when a folder of its family is first loaded: making all
    classes at once would import the modelling files of all families, a second and a half.
    """
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    for model_type in FAMILIES:
        native_name = auto.CONFIG_MAPPING_NAMES.get(model_type)
        if native_name is not None:
            pruned_type = PRUNED_PREFIX + model_type
            auto.CONFIG_MAPPING.register(pruned_type, _stand_in(model_type, native_name))


def _stand_in(model_type: str, native_name: str) -> type:
    def from_dict(cls: type, *args, **kwargs):
        auto = importlib.import_module("transformers.models.auto.configuration_auto")
        native = auto.CONFIG_MAPPING[model_type]
        model_classes(native)
        return config_class(native).from_dict(*args, **kwargs)

    members = {"model_type": PRUNED_PREFIX + model_type, "from_dict": classmethod(from_dict)}
    return type(f"Disp{native_name}", (), members)


def config_class(native: type) -> type:
    """`LlamaConfig` -> `DispLlamaConfig`."""
    module = importlib.import_module("disp_llm.compact.configuration_disp_llm")
    return module.pruned_config(native.__name__)


def model_classes(native_config: type) -> tuple[type, type]:
    """`LlamaConfig` -> (`DispLlamaModel`, `DispLlamaForCausalLM`), known to the auto classes."""
    transformers = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    module = importlib.import_module("disp_llm.compact.modeling_disp_llm")
    config = config_class(native_config)
    base = module.pruned_model(auto.MODEL_MAPPING[native_config].__name__)
    causal = module.pruned_model(auto.MODEL_FOR_CAUSAL_LM_MAPPING[native_config].__name__)
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.AutoModel.register(config, base, exist_ok=True)
    auto.AutoModelForCausalLM.register(config, causal, exist_ok=True)
    return base, causal
