"""Where a model comes from: revision, processor, base model, licence."""

import contextlib
from itertools import chain
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from yaml import YAMLError

from disp_llm.models import embedded
from disp_llm.models.files import PROCESSOR, fingerprint, hub_place
from disp_llm.runs.tensors import tensors_sha256

IN_MEMORY = "sha256:tensors:"
"""How the revision of a model begins that lay in memory, wherever it came from."""

HUB_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, RuntimeError),
    *(SafetensorError, YAMLError),
)
"""What is raised for a name or a network that is not right."""


def source_of(name: str, commit: str | None) -> dict[str, str]:
    """Name and revision of a model: its commit on the hub, or a hash of everything that is read of
    a local one."""
    return {"model": name, "revision": commit or fingerprint(embedded.path_of(name))}


def cached_folder(model: Path, revision: str | None = None) -> Path | None:
    """Where the cache has a model of the hub: the folder `snapshots/COMMIT` that it was last loaded
    from, or that of a revision; None of a local one, and where the cache does not have it."""
    if model.exists():
        return None
    name, asked = hub_place(model.as_posix())
    found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision or asked)
    return Path(found).parent if isinstance(found, str) else None


def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 of the names, shapes and numbers of a model in memory; these as bfloat16 has them, so
    that it is known again in whatever data type it is loaded."""
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    return f"{IN_MEMORY}{tensors_sha256(tensors, torch.bfloat16)}"


def processor_files(model: Path, commit: str | None) -> tuple[Path, ...]:
    """The files of a wrapper's processor, which travel with an exported folder as they are: in the
    model's folder or, of one of the hub, fetched into the cache."""
    if model.exists():
        return tuple(model / name for name in PROCESSOR if (model / name).is_file())
    found: list[Path] = []
    for name in PROCESSOR:
        with contextlib.suppress(EntryNotFoundError):  # most models lack some
            repository, _ = hub_place(model.as_posix())
            fetched = huggingface_hub.hf_hub_download(repository, name, revision=commit)
            found.append(Path(fetched))
    return tuple(found)


def base_and_license(name: str) -> tuple[str, str]:
    """The original's name on the hub and its licence, as far as its card says; else empty.

    Asks the hub where the model is not local, so only what writes a card calls it.
    """
    if name == embedded.MODEL:
        return embedded.HUB_NAME, embedded.LICENSE
    local, name = Path(name).exists(), hub_place(name)[0]
    if local and not (Path(name) / "README.md").is_file():
        return "", ""
    try:
        card = huggingface_hub.ModelCard.load(str(Path(name) / "README.md") if local else name)
    except HUB_ERRORS:
        return ("" if local else name), ""
    stated = card.data.to_dict()
    base = stated.get("base_model") if local else name
    return (base if isinstance(base, str) else ""), str(stated.get("license") or "")
