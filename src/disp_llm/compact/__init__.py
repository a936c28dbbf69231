"""The code copied into exported folders, and its registration with transformers.

The files of `CODE` are copied into every folder. Other packages use `register` (folders then load
without `trust_remote_code`) and `model_classes`.
"""

import importlib
from typing import Any

from disp_llm.models.architectures import (
    PRUNED_PREFIX,
    WRAPPERS,
    model_types,
    on_registration,
    row_of,
)

CODE = (
    "configuration_disp_llm.py",
    "experts_disp_llm.py",
    "heads_disp_llm.py",
    "modeling_disp_llm.py",
)
"""Code files copied into every exported folder."""

CAUSAL = {"AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING"}
"""The auto class of causal models, and transformers' table of the classes that it makes."""

WRAPPING = {
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
}
"""The auto classes of wrappers and their tables; the first table has all wrappers."""


def register() -> None:
    """Adds a placeholder configuration to transformers' table for every architecture, including any
    registered later.

    The first load of a folder replaces its architecture's placeholder with the real class. Making
    all classes at once would import all their modelling files, which takes a second and a half.
    """
    for model_type in (*model_types(), *WRAPPERS):
        register_type(model_type)
    if register_type not in on_registration:
        on_registration.append(register_type)


def register_type(model_type: str) -> None:
    """Adds the placeholder of one architecture."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    pruned_type = PRUNED_PREFIX + model_type
    if pruned_type not in auto.CONFIG_MAPPING:
        auto.CONFIG_MAPPING.register(pruned_type, _placeholder(model_type))


def _placeholder(model_type: str) -> type:
    def from_dict(cls: type, *args, **kwargs):
        auto = importlib.import_module("transformers.models.auto.configuration_auto")
        row_of(model_type)  # imports the package of the row, which may register the classes
        if model_type not in auto.CONFIG_MAPPING:
            raise ValueError(
                f"transformers has no `{model_type}`: upgrade it, or import the package that "
                "registers it"
            )
        _, causal = model_classes(auto.CONFIG_MAPPING[model_type])
        return causal.config_class.from_dict(*args, **kwargs)

    members = {"model_type": PRUNED_PREFIX + model_type, "from_dict": classmethod(from_dict)}
    return type("DispConfig", (), members)


def model_classes(native_config: Any) -> tuple[Any, Any]:
    """`LlamaConfig` -> (`DispLlamaModel`, `DispLlamaForCausalLM`), registered with the auto
    classes; for a wrapper, the second is the whole model with its head."""
    transformers = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    module = importlib.import_module("disp_llm.compact.modeling_disp_llm")
    base = module.pruned_model(auto.MODEL_MAPPING[native_config].__name__)
    tables = WRAPPING if native_config.model_type in WRAPPERS else CAUSAL
    native = getattr(auto, next(iter(tables.values())))[native_config]
    causal = module.pruned_model(native.__name__)
    config = causal.config_class
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.AutoModel.register(config, base, exist_ok=True)
    for name in auto_classes(native_config):
        getattr(auto, name).register(config, causal, exist_ok=True)
    return base, causal


def auto_classes(native_config: type) -> list[str]:
    """Returns the names of the auto classes that load the model with its head. The one of causal
    models is always included: through it a wrapper also reads text."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    tables = WRAPPING if native_config.model_type in WRAPPERS else {}
    known = [name for name, table in tables.items() if native_config in getattr(auto, table)]
    return [*CAUSAL, *known]
