"""A hub id, a folder or the embedded default -> model, tokenizer and family row.

Real models come through transformers as they are. Weights are frozen and dropout is off.
"""

import hashlib
import logging
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

logger = logging.getLogger(__name__)

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

    @property
    def opening(self) -> int | None:
        """What every window begins with, where the model needs it."""
        return opening_of(self.model, self.family)


def opening_of(model: PreTrainedModel, family: Family) -> int | None:
    """The BOS of a family that is lost without one before its text, else None."""
    return model.config.get_text_config().bos_token_id if family.opens_with_bos else None


STRETCHED = ("linear", "dynamic")
"""Kinds of rotary positions that reach `factor` times as far as the model was first trained."""


def require_positions(model: PreTrainedModel, tokens: int, flag: str) -> None:
    """Refuses windows that are longer than what the model was made for.

    Raises:
        InputError: naming the flag.
    """
    config = model.config.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or {}
    most = getattr(config, "max_position_embeddings", None)
    if most and scaling.get("rope_type") in STRETCHED:  # it may be the length before
        most = int(most * scaling.get("factor", 1))
    if most and tokens > most:
        raise InputError(
            f"{tokens} tokens, and the model has {most} positions",
            flag=flag,
            mend=f"give at most {most}",
        )


def start_process(machine: MachineConfig) -> tuple[Accelerator, torch.device]:
    """One process or, under `accelerate launch`, one of several, and the device it works on."""
    accelerator = Accelerator(cpu=machine.device == "cpu" or not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        return accelerator, accelerator.device
    return accelerator, resolve_device(machine.device)


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
    quantised = getattr(config, "quantization_config", None)
    if dense_only and quantised:
        kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise InputError(
            f"{name} is quantised {kind}".rstrip(), flag="MODEL", mend="name the model before that"
        )
    device = resolve_device(machine.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_arguments(name))
    except HUB_ERRORS as error:
        raise _not_loadable(name, error, "the tokenizer of ") from error
    dtype = resolve_dtype(machine.dtype, device)
    stored = getattr(config, "dtype", None)
    if machine.dtype == "auto" and stored not in (None, dtype):
        logger.warning("%s is stored in %s and runs in %s here (--dtype)", name, stored, dtype)
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
    if "gguf_file" in arguments:  # unpacked, so no longer quantised
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
    """Name and revision: a hub commit, or a hash of a local model's configuration and of samples of
    its weights."""
    path = embedded.model_file() if name == embedded.MODEL else Path(name)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        inside = [path / "config.json", *sorted(path.glob("*.safetensors"))]
        files = [file for file in (inside if path.is_dir() else [path]) if file.exists()]
        commit = _fingerprint(files) if files else ""
    return {"model": name, "revision": commit}


SAMPLES, SAMPLE_BYTES = 64, 1 << 16
"""Of a file of weights, which may be too large to be read whole."""


def _fingerprint(files: list[Path]) -> str:
    """SHA-256 of the sizes of files and of what lies at evenly spaced places in them."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.suffix} {size}".encode())
        with path.open("rb") as file:
            for place in range(SAMPLES):
                file.seek(max(size - SAMPLE_BYTES, 0) * place // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()}"


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
