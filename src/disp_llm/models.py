"""A hub id, a folder or the embedded default -> model, tokenizer and family row.

Real models come through transformers as they are. Weights are frozen and dropout is off.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import PreTrainedModel

from disp_llm import embedded
from disp_llm.config import InputError, MachineConfig, nearest
from disp_llm.families import FAMILIES, PRUNED_PREFIX, Family, family_of

GGUF_CONFIG = getattr(transformers, "GgufConfig", None)
"""Newer transformers leave GGUF weights packed unless told otherwise; older ones always unpack."""

HUB_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for a name, a file or a network that is not right."""


@dataclass(frozen=True)
class Loaded:
    """A frozen model, ready to run."""

    model: PreTrainedModel
    tokenizer: Any
    family: Family
    source: dict[str, str]
    """Name and revision, for provenance."""
    dtype: torch.dtype
    """That it was loaded in."""


def start_process(machine: MachineConfig) -> tuple[Accelerator, torch.device]:
    """One process or, under `accelerate launch`, one of several, and the device it works on."""
    wanted = resolve_device(machine.device)
    accelerator = Accelerator(cpu=wanted.type == "cpu")
    several = accelerator.num_processes > 1
    return accelerator, accelerator.device if several else wanted


def resolve_device(name: str) -> torch.device:
    """`auto` -> the first GPU, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"no device '{name}' here", flag="--device", mend="use cpu, cuda or auto"
        ) from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` -> bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
        name = "bfloat16" if native else "float32"
    return getattr(torch, name)


def _cpu_has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text()


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
    """Loads a model with its tokenizer, dense or (unless refused) pruned.

    Raises:
        InputError: no such model, an unknown architecture, or damaged files.
    """
    config = load_config(name)
    family = family_of(config) if dense_only else family_of_any(config)
    device = resolve_device(machine.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_arguments(name))
    except HUB_ERRORS as error:
        raise _not_loadable(name, error, "the tokenizer of ") from error
    dtype = resolve_dtype(machine.dtype, device)
    model = load_model(name, device, dtype)
    return Loaded(model, tokenizer, family, _source(name, config), dtype)


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
    model.config.__dict__.pop("quantization_config", None)
    model.eval().requires_grad_(False)
    return model.to(device)


def family_of_any(config: transformers.PreTrainedConfig) -> Family:
    """The row of a dense or of a pruned model's configuration.

    Raises:
        InputError: the architecture is not in the table.
    """
    native = config.model_type.removeprefix(PRUNED_PREFIX)
    return FAMILIES[native] if native in FAMILIES else family_of(config)


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes without weights."""
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
        flag="MODEL",
        mend=f"name a hub id that can be reached, a model folder, or {embedded.MODEL}",
    )


def _source(name: str, config: transformers.PreTrainedConfig) -> dict[str, str]:
    """Name and revision: a hub commit, or a hash of the file that defines a local model."""
    path = embedded.model_file() if name == embedded.MODEL else Path(name)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        path = path / "config.json" if path.is_dir() else path
        commit = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    return {"model": name, "revision": commit}


def base_and_license(name: str) -> tuple[str, str]:
    """The original's name on the hub and its licence, as far as its card says; else empty.

    Asks the hub where the model is not local, so only what writes a card calls it.
    """
    if name == embedded.MODEL:
        return embedded.HUB_NAME, embedded.LICENSE
    from huggingface_hub import ModelCard

    local = Path(name).exists()
    if local and not (Path(name) / "README.md").is_file():
        return "", ""
    try:
        card = ModelCard.load(str(Path(name) / "README.md") if local else name)
    except HUB_ERRORS:
        return ("" if local else name), ""
    stated = card.data.to_dict()
    base = stated.get("base_model") if local else name
    return (base if isinstance(base, str) else ""), str(stated.get("license") or "")
