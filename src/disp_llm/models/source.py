"""Where a model comes from: revision, base model, licence."""

import hashlib
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

from disp_llm.models import embedded

HUB_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for a name, a file or a network that is not right."""

SAMPLES, SAMPLE_BYTES = 64, 1 << 16
"""How many samples are read of a file, which may be too large to be read whole, and of what size.
"""


def source_of(name: str, config: transformers.PreTrainedConfig) -> dict[str, str]:
    """Name and revision: a commit of the hub, or a hash of a local model's configuration and of
    samples of its weights."""
    path = embedded.model_file() if name == embedded.MODEL else Path(name)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        inside = [path / "config.json", *sorted(path.glob("*.safetensors"))]
        files = [file for file in (inside if path.is_dir() else [path]) if file.exists()]
        commit = _fingerprint(files) if files else ""
    return {"model": name, "revision": commit}


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


def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 of the names, shapes and numbers of a model in memory."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        numbers = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(numbers.numpy().tobytes())
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
