"""The configuration of a model in which every block has its own widths.

This file, `modeling_disp_llm.py`, `experts_disp_llm.py` and `heads_disp_llm.py` are in every
exported folder and need only torch and transformers. `DispLlamaConfig` is `LlamaConfig` with one
more entry, `disp_llm`; the same holds for every architecture. A class is made when its name is
first requested.

    disp_llm = {
        "blocks": "layers",                       # path of the blocks in the base model; in a
                                                  # wrapper, for example, "language_model.layers"
        "attention": {"reads": [...], "writes": ..., "gather": ..., "scatter": ..., "fused": 1,
                      "norms": [...], "inside": [...]},
                                                  # and "per_head": parameters of the heads
        "heads": [2, 16, ...],                    # heads of the original's blocks, if they differ
        "alternatives": [{...}],                  # replace attention in blocks of other kinds
        "mlp": {...},                             # module paths are relative to a block
        "mixture": {..., "experts": {...}},       # replaces the MLP in blocks with experts
        "widths": {"attn_in": [410, ...], "attn_out", "mlp_in", "mlp_mid", "mlp_out": ...},
                                                  # mlp_mid of a mixture: width of each expert;
                                                  # "heads", "experts": their number, if some are
                                                  # pruned;
                                                  # "attention", "mlp": 0 if a block has none
        "chunk": 32,                              # neighbours in the residual stream that are
                                                  # selected together; absent = 1
        "biases": True,                           # if the layers that write have gained one
        "logit_scale": 0.25,                      # factor that the head applies to its logits;
                                                  # absent = 1
    }
"""

from typing import Any

import transformers

PREFIX = "Disp"


def native_class(name: str) -> Any:
    """Returns transformers' class of that name, or else the one that a package has registered with
    the auto classes; AttributeError if there is none."""
    if hasattr(transformers, name):
        return getattr(transformers, name)
    auto = transformers.models.auto.modeling_auto
    for table in (auto.MODEL_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        for one in (*table._extra_content.keys(), *table._extra_content.values()):
            if getattr(one, "__name__", "") == name:
                return one
    raise AttributeError(f"{name} is not in transformers: import the package that registers it")


def pruned_config(native_name: str) -> type:
    """`LlamaConfig` -> `DispLlamaConfig`, made once; AttributeError if there is none."""
    name = PREFIX + native_name
    if name not in globals():
        native = native_class(native_name)
        members: dict[str, Any] = {
            "__module__": __name__,
            "__doc__": f"{native_name} with the widths of every block.",
            "__annotations__": {"disp_llm": dict | None},
            "model_type": f"disp_{native.model_type}",
            "disp_llm": None,
            # transformers 5.15 renames the layer types of custom code; ours are the native ones
            "is_custom_code": classmethod(lambda cls: False),
        }
        if not hasattr(native, "logit_scale"):  # Cohere's have it themselves
            members["logit_scale"] = property(_logit_scale)
        made: Any = type(name, (native,), members)
        made.register_for_auto_class("AutoConfig")
        globals()[name] = made
    return globals()[name]


def _logit_scale(config: Any) -> float:
    """Serves engines that run the model without its head and know the logits' factor by this name,
    but not as `logits_scaling` (vLLM's Transformers backend)."""
    return (config.disp_llm or {}).get("logit_scale", 1.0)


def __getattr__(name: str) -> type:
    if name.startswith(PREFIX) and name.endswith("Config"):
        return pruned_config(name.removeprefix(PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
