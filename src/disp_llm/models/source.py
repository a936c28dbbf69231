"""Provenance of a model: revision, processor, base model, licence."""

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
from disp_llm.models.wholeness import AGAIN
from disp_llm.runs.files import read_json
from disp_llm.runs.tensors import tensors_sha256

IN_MEMORY = "sha256:tensors:"
"""Prefix of the revision of a model given in memory, whatever its origin."""

HUB_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, RuntimeError),
    *(SafetensorError, YAMLError),
)
"""Errors raised for a wrong name or a failing network."""


def source_of(name: str, commit: str | None) -> dict[str, str]:
    """Returns name and revision of a model: its commit on the hub, or a hash of a local model's
    files."""
    return {"model": name, "revision": commit or fingerprint(embedded.path_of(name))}


def cached_folder(model: Path, revision: str | None = None) -> Path | None:
    """Returns the cache folder `snapshots/COMMIT` of a hub model: of `revision`, or the one last
    loaded. None if the model is local or not cached."""
    if model.exists():
        return None
    name, asked = hub_place(model.as_posix())
    found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision or asked)
    return Path(found).parent if isinstance(found, str) else None


def fingerprint_of(model: PreTrainedModel) -> str:
    """Returns the SHA-256 of names, shapes and values of a model in memory. It takes the values in
    bfloat16, so that it does not depend on the data type of loading."""
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    return f"{IN_MEMORY}{tensors_sha256(tensors, torch.bfloat16)}"


def processor_files(model: Path, commit: str | None) -> tuple[Path, ...]:
    """Returns the files of a wrapper's processor, which exports copy unchanged: from the model's
    folder or, for a hub model, fetched into the cache.

    Raises:
        InputError: one of them holds no JSON object.
    """
    found = [model / name for name in PROCESSOR if (model / name).is_file()]
    for name in () if model.exists() else PROCESSOR:
        with contextlib.suppress(EntryNotFoundError):  # most models lack some
            repository, _ = hub_place(model.as_posix())
            fetched = huggingface_hub.hf_hub_download(repository, name, revision=commit)
            found.append(Path(fetched))
    for file in found:
        read_json(file, AGAIN)
    return tuple(found)


def base_and_license(name: str) -> tuple[str, str]:
    """Returns the original's hub name and its licence from the model card, each "" if unknown.

    Asks the hub if the model is not local, so only code that writes a card calls it.
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
