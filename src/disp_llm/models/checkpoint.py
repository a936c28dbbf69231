"""The safetensors files of a model that is not loaded, of which one tensor at a time is read."""

import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor
from transformers.core_model_loading import WeightRenaming

from disp_llm.config.parts import MachineConfig
from disp_llm.models.files import INDEX, WEIGHTS
from disp_llm.models.loading import Loaded, is_packed, load
from disp_llm.models.wholeness import AGAIN, FLOATS, STORED, require_finite_tensors
from disp_llm.runs.files import read_json
from disp_llm.runs.tensors import opened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: Path
    name: str
    """What the file calls it."""
    shape: tuple[int, ...]
    stored: str
    """Its data type, as safetensors calls it."""


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a model, in its files."""

    model: str
    dtype: torch.dtype
    """What weights are rounded to, as they are when the model is loaded."""
    places: dict[str, Place]
    """By the names of the model."""

    def read(self, name: str) -> Tensor:
        """A tensor, in the data type of the model.

        Raises:
            InputError: its file cannot be read, or a number in it is not finite.
        """
        place = self.places[name]
        with opened(place.file, AGAIN) as file:
            tensor = file.get_tensor(place.name)
        require_finite_tensors(self.model, [(name, tensor)])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def load_unread(name: str, machine: MachineConfig) -> tuple[Loaded, Checkpoint | None]:
    """A dense model without its weights, and its files; or, where these do not hold its tensors one
    by one, the model in memory and None.

    Raises:
        InputError: no such model, an unknown architecture, or damaged files.
    """
    if not is_packed(name):
        empty = load(name, machine, dense_only=True, empty=True)
        checkpoint = checkpoint_of(empty)
        if checkpoint is not None:
            return empty, checkpoint
    logger.warning("%s is loaded as a whole: its files do not hold its tensors one by one", name)
    return load(name, machine, dense_only=True), None


def checkpoint_of(loaded: Loaded) -> Checkpoint | None:
    """The files of a model; None where they do not hold its tensors one by one, as those of
    families do not whose weights transformers puts together while it loads them.

    Args:
        loaded: the model, which may be empty.

    Raises:
        InputError: a file cannot be read.
    """
    model: Any = loaded.model
    state = model.state_dict()
    conversions = getattr(model, "_weight_conversions", None) or []
    elsewhere = getattr(model.config, "transformers_weights", None)
    folder = _folder_of(loaded.source)
    renamed = all(isinstance(one, WeightRenaming) for one in conversions)
    if elsewhere or not renamed or folder is None:
        return None
    found = {_renamed(name, conversions): place for name, place in _stored(folder).items()}
    tied = set(state) - {name for name, _ in chain(model.named_parameters(), model.named_buffers())}
    places: dict[str, Place] = {}
    for name, like in state.items():
        # The head-less model, as GPT-2 is published, has no prefix.
        place = found.get(name, found.get(name.removeprefix(f"{model.base_model_prefix}.")))
        if place is None and name in tied:
            continue
        kinds = STORED.get(like.dtype, FLOATS)
        if place is None or place.shape != tuple(like.shape) or place.stored not in kinds:
            return None
        if like.is_floating_point() and like.dtype != loaded.dtype:
            return None
        places[name] = place
    return Checkpoint(loaded.source["model"], loaded.dtype, places)


def _renamed(name: str, renamings: list[WeightRenaming]) -> str:
    """What the model calls a tensor of a file: some families had other names before."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def _folder_of(source: dict[str, str]) -> Path | None:
    """The folder of a local model, or of one of the hub in the cache; None of a GGUF file."""
    name = Path(source["model"])
    if name.is_dir():
        return name
    if name.exists():
        return None
    cached = huggingface_hub.try_to_load_from_cache(
        source["model"], "config.json", revision=source["revision"]
    )
    return Path(cached).parent if isinstance(cached, str) else None


def _stored(folder: Path) -> dict[str, Place]:
    """Where each tensor of a folder lies, by its name there."""
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        index = read_json(folder / INDEX, AGAIN) if (folder / INDEX).is_file() else {}
        files = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
    found: dict[str, Place] = {}
    for path in files:
        with opened(path, AGAIN) as file:
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(name)
                found[name] = Place(path, name, tuple(part.get_shape()), part.get_dtype())
    return found
