"""A hub id, a folder or the embedded default -> model, tokenizer and row of the table.

transformers loads a model whole or not at all, and no code from its folder is run. Weights are
frozen and dropout is off.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import quantization_config

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.parts import PlaceConfig
from disp_llm.config.plugins import added_names
from disp_llm.models.architectures import (
    ARCHITECTURES,
    PRUNED_PREFIX,
    WRAPPERS,
    Family,
    family_of,
    family_of_any,
    row_of,
)
from disp_llm.models.devices import dtype_name, resolve_device, resolve_dtype
from disp_llm.models.download import fetch
from disp_llm.models.embedded import MODEL, path_of
from disp_llm.models.files import hub_place, weight_files
from disp_llm.models.source import (
    IN_MEMORY,
    cached_folder,
    fingerprint_of,
    processor_files,
    source_of,
)
from disp_llm.models.wholeness import AGAIN, require_finite, require_whole
from disp_llm.models.windows import required_bos, rows_of
from disp_llm.runs.tensors import opened

if TYPE_CHECKING:
    from disp_llm.models.sharding import Sharding

logger = logging.getLogger(__name__)

GGUF_CONFIG = getattr(transformers, "GgufConfig", None)
"""Newer transformers keep GGUF weights packed unless told otherwise; older ones always unpack."""

UNPACKED = {"mxfp4": partial(quantization_config.Mxfp4Config, dequantize=True)}
"""Quantisations of published originals (gpt-oss), and the configurations that make transformers
unpack them."""

COMPRESSED = "compressed-tensors"
"""Quantisation format that `convert` writes; also the name of the package that reads it."""


@dataclass(frozen=True)
class Loaded:
    """A frozen model, ready to run."""

    model: PreTrainedModel
    tokenizer: Any
    family: Family
    source: dict[str, str]
    """Name and revision, for provenance."""
    dtype: torch.dtype
    """Data type that it was loaded in."""
    processor: tuple[Path, ...] = ()
    """Files of a wrapper's processor, copied into every export."""
    sharding: "Sharding | None" = None
    """Divides its weights among processes; None = this process has all of them."""

    @property
    def bos_token_id(self) -> int | None:
        """BOS that every window must begin with; None if the model needs none."""
        return required_bos(self.model, self.family)

    @property
    def rows(self) -> int:
        """Rows of the embedding, which may be fewer than the tokenizer has tokens."""
        return rows_of(self.model)

    def machine(self, settings: PlaceConfig, device: torch.device | str) -> PlaceConfig:
        """Returns the settings with this device and the data type that the model was loaded in."""
        dtype: Any = dtype_name(self.dtype)
        return replace(settings, device=str(device), dtype=dtype)

    def as_recorded(self, source: dict[str, str]) -> "Loaded":
        """Returns the model with a hash of its tensors as revision if `source` records a model in
        memory. A model divided among processes keeps its revision."""
        recorded, now = source.get("revision", ""), self.source["revision"]
        if not recorded.startswith(IN_MEMORY) or now.startswith(IN_MEMORY) or self.sharding:
            return self
        return replace(self, source=self.source | {"revision": fingerprint_of(self.model)})


def load_config(name: str) -> transformers.PreTrainedConfig:
    """Loads the configuration of a model, without its weights."""
    _require_place(name)
    with _one_line(name):
        # The package of a row may register its classes.
        if any(name not in transformers.CONFIG_MAPPING for name in added_names(ARCHITECTURES)):
            stated, _ = transformers.PreTrainedConfig.get_config_dict(**_arguments(name))
            row_of(str(stated.get("model_type")))
        config = transformers.AutoConfig.from_pretrained(**_arguments(name))
        borrowed = "/" in str(config._attn_implementation)
    if borrowed:  # transformers would fetch this code from the hub and run it
        raise InputError(
            f"'{name}' asks for attention of {config._attn_implementation}, which is never run",
            field="model",
            hint="take attn_implementation out of its config.json",
        )
    for part in (config, *(getattr(config, one, None) for one in config.sub_configs)):
        if part is not None:
            _require_possible(name, part)
    return config


def _require_place(name: str) -> None:
    """Refuses a path that does not exist, and a folder of models (a run) in place of one."""
    path = path_of(hub_place(name)[0])
    is_path = path.is_absolute() or name.startswith(".") or len(path.parts) > 2
    if not path.exists() and (is_path or (len(path.parts) == 2 and path.parent.is_dir())):
        hint = "name a model folder, a hub id, or smollm2-135m"
        raise InputError(f"there is no {name}", field="model", hint=hint)
    inside = sorted(path.glob("*/config.json"))
    if inside and not (path / "config.json").exists():
        hint = f"name one of them, such as {inside[0].parent}"
        raise InputError(f"{name} holds models, and is none", field="model", hint=hint)


LARGEST = {
    "num_hidden_layers": 1000, "hidden_size": 2**16, "intermediate_size": 2**18,
    "moe_intermediate_size": 2**18, "num_attention_heads": 2**12, "num_key_value_heads": 2**12,
    "head_dim": 2**12, "vocab_size": 2**25, "num_experts": 2**14, "num_local_experts": 2**14,
    "n_routed_experts": 2**14,
}  # fmt: skip
"""Largest accepted sizes. Llama 3.1 405B has 126 layers, hidden 16,384, intermediate 53,248.
Counting a larger model would take hours before anything reports that it does not fit."""


def _require_possible(name: str, config: transformers.PreTrainedConfig) -> None:
    """Refuses a configuration with absurd sizes."""
    written, found = config.to_dict(), {}  # some attributes are None if layers differ
    for key in LARGEST:
        value = written.get(config.attribute_map.get(key, key))
        numbers = value if isinstance(value, list | tuple) else [value]
        found[key] = max((number for number in numbers if isinstance(number, int)), default=0)
    wide = found["num_hidden_layers"] * (4 * found["hidden_size"] + found["intermediate_size"])
    for key, value, most in (
        *((key, found[key], LARGEST[key]) for key in LARGEST),
        ("num_hidden_layers × widths", wide, 2**25),
    ):
        if value > most:
            what = f"'{name}' says {key} = {value:,}, and at most {most:,} is read"
            raise InputError(what, field="model", hint="correct its config.json")


def load(name: str, machine: PlaceConfig, dense_only: bool = False, empty: bool = False) -> Loaded:
    """Loads a model with its tokenizer.

    Args:
        dense_only: True refuses a pruned or quantised model.
        empty: True leaves the model on the meta device, with shapes and data types but no values.
    """
    config = load_config(name)
    place = _arguments(name, of_one_commit=True)
    family = family_of(config) if dense_only else family_of_any(config)
    if dense_only:
        require_unquantised(name, config)
    device = resolve_device(machine.device)
    tokenizer = load_tokenizer(name, place)
    with _one_line(name, "the processor of "):
        processor = processor_files(path_of(name), place["revision"]) if family.tower else ()
    dtype = resolve_dtype(machine.dtype, device)
    stored = getattr(config, "dtype", None)
    if machine.dtype == "auto" and stored not in (None, dtype):
        logger.warning("%s is stored in %s and runs in %s, see `dtype`", name, stored, dtype)
    if not empty:
        fetch(name, place["revision"])
    model = _whole_model(name, config, place, torch.device("meta") if empty else device, dtype)
    source = source_of(name, place["revision"])
    return Loaded(model, tokenizer, family, source, dtype, processor)


def load_tokenizer(name: str, place: dict[str, Any] | None = None) -> Any:
    """Loads only the tokenizer of a model."""
    with _one_line(name, "the tokenizer of "):
        return transformers.AutoTokenizer.from_pretrained(**place or _arguments(name, True))


def require_unquantised(name: str, config: transformers.PreTrainedConfig) -> None:
    """Refuses a model with quantised weights, unless loading unpacks them (`UNPACKED`)."""
    kind = _quantised(config)
    if kind not in (None, *UNPACKED):
        raise InputError(
            f"{name} is quantised {kind}".rstrip(),
            field="model",
            hint="name the model that it was made from",
        )


def _quantised(config: transformers.PreTrainedConfig) -> str | None:
    """Returns how weights are quantised; "" if the method is not stated, None if they are not."""
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return None
    return str(stated.get("quant_method", "")) if isinstance(stated, dict) else ""


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Loads only the model, frozen and without dropout."""
    config = load_config(name)
    return _whole_model(name, config, _arguments(name, of_one_commit=True), device, dtype)


def _whole_model(
    name: str,
    config: transformers.PreTrainedConfig,
    place: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Loads a model; refuses missing and non-finite weights. On the meta device, only shapes."""
    packed, empty = is_packed(name), device.type == "meta"
    for file in weight_files(path_of(name)):
        with opened(file, AGAIN):  # transformers would not name the damaged file
            pass
    unpacking = partial(GGUF_CONFIG, dequantize=True) if packed and GGUF_CONFIG else None
    unpacking = UNPACKED.get(_quantised(config) or "", unpacking)
    if unpacking:
        place = place | {"quantization_config": unpacking()}
    if empty:
        place = place | {"device_map": "meta"}
    with _one_line(name):
        model, report = auto_class(config).from_pretrained(
            **place,
            dtype=dtype,
            use_safetensors=None if packed else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them, and `require_whole` refuses them
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            f"'{name}' is an adapter on another model",
            field="model",
            hint="merge it first, by `merge_and_unload` of PEFT",
        )
    computed = _computed_buffers(config) if _quantised(config) == COMPRESSED else set()
    require_whole(name, report | {"missing_keys": set(report["missing_keys"]) - computed})
    if not empty:
        require_finite(name, model)
    if packed or unpacking:  # so it is no longer quantised
        model.config.__dict__.pop("quantization_config", None)
    for parameter in model.parameters() if unpacking else ():
        if parameter.dtype == torch.bfloat16:  # older transformers always unpack to it
            parameter.data = parameter.data.to(dtype)
    if _quantised(config) == COMPRESSED and not empty:
        _unpack(model, computed)
    if not empty:
        correct_ties(model)
    model.eval().requires_grad_(False)
    return model.to(device)


def correct_ties(model: PreTrainedModel) -> None:
    """Corrects a configuration that ties weights of which the files hold several: transformers then
    ties none, but whatever is built from the configuration would."""
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    if any(model.get_parameter(one) is not model.get_parameter(other) for one, other in pairs):
        for described in (model.config, model.config.get_text_config()):
            described.tie_word_embeddings = False


def _computed_buffers(config: transformers.PreTrainedConfig) -> set[str]:
    """Returns the names of buffers that a model computes itself, and that no file holds."""
    model = empty_model(config)
    return {name for name, _ in model.named_buffers()} - model.state_dict().keys()


def _unpack(model: Any, computed: set[str]) -> None:
    """Unpacks weights now, not on the first forward pass as the library would; drops scales.

    Args:
        computed: names of buffers that are not stored. The library makes weights of those beside a
            quantised weight, such as the scale of Gemma's embedding; they become buffers again.
    """
    from compressed_tensors.offload import remove_dispatch
    from compressed_tensors.quantization import QuantizationMetadata

    model.hf_quantizer.compressor.decompress_model(model)
    remove_dispatch(model)  # under a dispatch, assigned weights are copied
    for module in model.modules():
        QuantizationMetadata.clear_all_qparams(module)
    for name in computed & dict(model.named_parameters()).keys():
        place, _, own = name.rpartition(".")
        module, value = model.get_submodule(place), model.get_parameter(name).detach()
        delattr(module, own)
        module.register_buffer(own, value, persistent=False)
    if model.config.get_text_config().tie_word_embeddings:  # each was unpacked separately
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def auto_class(config: transformers.PreTrainedConfig) -> Any:
    """Returns the auto class of the whole model; the causal class would build only the language
    model of some wrappers."""
    if config.model_type.removeprefix(PRUNED_PREFIX) in WRAPPERS:
        return transformers.AutoModelForMultimodalLM
    return transformers.AutoModelForCausalLM


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """Builds a configuration's model on the meta device: shapes without values."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=False)


def load_shapes(name: str) -> tuple[PreTrainedModel, Family]:
    """Returns a dense model on the meta device, built from its configuration, and its row."""
    config = load_config(name)
    family = family_of(config)  # its error is clearer than transformers' own
    require_unquantised(name, config)
    with _one_line(name):
        return empty_model(config), family


def is_packed(name: str) -> bool:
    """Returns whether a model is a GGUF file, which can only be unpacked as a whole."""
    return path_of(name).suffix == ".gguf"


def _arguments(name: str, of_one_commit: bool = False) -> dict[str, Any]:
    """Returns arguments of `from_pretrained` that locate a model, or a GGUF file in its folder.

    Args:
        of_one_commit: True pins the commit that the configuration was just read from, against a
            later commit, or a conversion that somebody has proposed.
    """
    repository, revision = hub_place(name)
    path = path_of(repository)
    where: dict[str, Any] = {"pretrained_model_name_or_path": repository, "revision": revision}
    if path.suffix == ".gguf":
        where |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if of_one_commit:
        cached = cached_folder(path_of(name))  # transformers no longer reports the commit
        where |= {"revision": cached and cached.name}
    return {**where, "trust_remote_code": False}


@contextlib.contextmanager
def _one_line(name: str, part: str = "") -> Iterator[None]:
    """Turns any error of transformers into one line; a damaged file can raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _not_loadable(name, error, part) from error


def _not_loadable(name: str, error: Exception, part: str) -> InputError:
    said = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
        hint = "name a smaller model, or use a machine with more memory"
        return InputError(f"{part}'{name}' does not fit into memory", field="model", hint=hint)
    if "trust_remote_code" in said:
        return InputError(
            f"{part}'{name}' is not supported: its code lies in its folder, and is never run",
            field="model",
            hint="name a model whose architecture transformers has, or install a package that "
            "registers its classes (docs/extend.md)",
        )
    if "model type `deci`" in said:
        return InputError(
            f"'{name}' has blocks of different shapes, which only llama.cpp reads from a GGUF file",
            field="model",
            hint="name the folder that the file was made from",
        )
    if "use_safetensors" in said or "no file named model.safetensors" in said:
        return InputError(
            f"'{name}' has no safetensors, and pickled weights, which can run code, are not opened",
            field="model",
            hint="where you trust it, convert it by `AutoModelForCausalLM.from_pretrained(MODEL)"
            ".save_pretrained(FOLDER)`, and name that folder",
        )
    why = next((line.strip(" .:") for line in said.splitlines() if line.strip()), "")
    why = f"{type(error).__name__}: {why}"
    if path_of(name).exists():
        near, hint = "", f"name another model, or {AGAIN} if its files are damaged"
    else:
        near = nearest(name, [MODEL])
        hint = f"name a hub id that can be reached, a model folder, or {MODEL}"
    return InputError(f"cannot load {part}'{name}'{near} ({why})", field="model", hint=hint)
