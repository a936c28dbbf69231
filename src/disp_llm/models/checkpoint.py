"""Reads the tensors of a model one at a time from its safetensors files, without loading it.

This needs files that name each tensor as the model does. A model whose tensors transformers
renames, merges or unpacks on loading is loaded as a whole.
"""

import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp_llm.config.parts import PlaceConfig
from disp_llm.models.embedded import path_of
from disp_llm.models.files import weight_files
from disp_llm.models.loading import Loaded, correct_ties, is_packed, load
from disp_llm.models.source import cached_folder
from disp_llm.models.wholeness import AGAIN, require_finite_tensors
from disp_llm.runs.tensors import opened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Locations of all tensors of a model."""

    model: str
    places: dict[str, tuple[Path, str]]
    """By name in the model: the file, and the tensor's name in it."""
    like: dict[str, Tensor]
    """Tensors of the model on the meta device, by name."""

    def read(self, name: str) -> Tensor:
        """Reads one tensor, in its data type in the model; refuses values that are not finite."""
        path, stored = self.places[name]
        with opened(path, AGAIN) as file:
            tensor = file.get_tensor(stored)
        require_finite_tensors(self.model, [(stored, tensor)])
        return tensor.to(self.like[name].dtype)


def load_unread(name: str, machine: PlaceConfig) -> tuple[Loaded, Checkpoint | None]:
    """Returns an empty dense model and its checkpoint. If its tensors cannot be read one by one,
    returns the model in memory and None."""
    if not is_packed(name):
        empty = load(name, machine, dense_only=True, empty=True)
        checkpoint = checkpoint_of(empty)
        if checkpoint is not None:
            return empty, checkpoint
    logger.warning("%s is loaded as a whole: its tensors cannot be read one by one", name)
    return load(name, machine, dense_only=True), None


def checkpoint_of(empty: Loaded) -> Checkpoint | None:
    """Returns an empty model's checkpoint; None if files do not hold its tensors as they are."""
    model, place = empty.model, path_of(empty.source["model"])  # a GGUF file has no folder
    folder = place if place.is_dir() else cached_folder(place, empty.source["revision"])
    if folder is None or getattr(model.config, "quantization_config", None):
        return None
    stored: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in weight_files(folder):
        with opened(path, AGAIN) as file:
            for key in file.keys():  # noqa: SIM118  (it is no dictionary)
                stored[key] = path, tuple(file.get_slice(key).get_shape())
    _tie(model, stored)
    state = model.state_dict()
    first = {name for name, _ in chain(model.named_parameters(), model.named_buffers())}
    places: dict[str, tuple[Path, str]] = {}
    for name, like in state.items():
        # Published without its head, as GPT-2 is, a model has no prefix.
        bare = name.removeprefix(f"{model.base_model_prefix}.")
        key = name if name in stored else bare
        path, shape = stored.get(key, (folder, None))
        if shape == tuple(like.shape):
            places[name] = path, key
        elif name in first:  # else it is tied to a tensor that was found
            return None
    return Checkpoint(empty.source["model"], places, state)


def _tie(model: Any, stored: dict[str, tuple[Path, tuple[int, ...]]]) -> None:
    """Ties weights that the files hold twice with equal values: transformers ties such weights when
    it reads them, but not on an empty model. With other values, the configuration ties them no
    longer."""
    for pair in model.all_tied_weights_keys.items():
        if all(name in stored for name in pair):
            tensors = []
            for name in pair:
                with opened(stored[name][0], AGAIN) as file:
                    tensors.append(file.get_tensor(name))
            if torch.equal(*tensors):
                model.tie_weights()
    correct_ties(model)
