"""What an exported folder carries, and how transformers comes to know it.

The two other files of this package are copied into every exported folder. `register` announces their
classes to transformers' auto classes, after which a folder loads without `trust_remote_code`.
"""

import importlib

from disp_llm.families import FAMILIES


def register() -> None:
    """Announces the configuration of every family; a model class follows when a folder asks for it.

    Importing the modelling files of all families would cost a program that may need none of them a
    second and a half, hence the second step.
    """
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    for model_type in FAMILIES:
        if model_type in auto.CONFIG_MAPPING:
            made = config_class(auto.CONFIG_MAPPING[model_type])
            made.from_dict = classmethod(_from_dict)
            auto.CONFIG_MAPPING.register(made.model_type, made, exist_ok=True)


def config_class(native: type) -> type:
    """`LlamaConfig` -> `DispLlamaConfig`."""
    module = importlib.import_module("disp_llm.compact.configuration_disp_llm")
    return module.pruned_config(native.__name__)


def model_classes(native_config: type) -> tuple[type, type]:
    """`LlamaConfig` -> (`DispLlamaModel`, `DispLlamaForCausalLM`), known to the auto classes."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    module = importlib.import_module("disp_llm.compact.modeling_disp_llm")
    config = config_class(native_config)
    base = module.pruned_model(auto.MODEL_MAPPING[native_config].__name__)
    causal = module.pruned_model(auto.MODEL_FOR_CAUSAL_LM_MAPPING[native_config].__name__)
    auto.AutoModel.register(config, base, exist_ok=True)
    auto.AutoModelForCausalLM.register(config, causal, exist_ok=True)
    return base, causal


def _from_dict(cls: type, *args, **kwargs):
    """The native `from_dict` of a pruned configuration, which also announces its model classes."""
    native = cls.__mro__[1]
    model_classes(native)
    return native.from_dict.__func__(cls, *args, **kwargs)
