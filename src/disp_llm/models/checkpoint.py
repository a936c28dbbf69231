"""The safetensors files of a model that is not loaded, of which one tensor at a time is read."""

import copy
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor
from transformers.core_model_loading import WeightRenaming
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from disp_llm.config.parts import MachineConfig
from disp_llm.models.files import weight_files
from disp_llm.models.loading import Loaded, is_packed, load
from disp_llm.models.wholeness import AGAIN, FLOATS, STORED, require_finite_tensors
from disp_llm.runs.tensors import opened

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"(.*?)(\d*)")
"""A part of a name: a word and the number at its end, either of which may be missing."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file lies."""

    file: Path
    name: str
    """What the file calls it."""
    shape: tuple[int, ...]
    stored: str
    """Its data type, as safetensors calls it."""
    pattern: str | None = None
    """Which of the names that a converter puts together it has; None without one."""


class FourBits:
    """A converter, as transformers has them, of the weights of experts in MXFP4: of their blocks,
    bytes of two numbers each, and their scales."""

    def __init__(self) -> None:
        self.parts: dict[str | None, Tensor] = {}

    def add_tensor(self, target: str, name: str, pattern: str | None, tensor: Tensor) -> None:
        """Adds one of both, which its pattern says."""
        self.parts[pattern] = tensor

    def convert(self, name: str, model: Any, config: Any) -> dict[str, Tensor]:
        """The weight, in the data type of the model."""
        dtype = model.get_parameter(name).dtype
        parts = (self.parts[pattern] for pattern in FOUR_BITS)
        return {name: convert_moe_packed_tensors(*parts, dtype=dtype)}


FOUR_BITS = ("_blocks", "_scales")
"""What the names of both end in."""
BYTES = "U8"
"""Their data type, as safetensors calls it."""


@dataclass(frozen=True)
class Source:
    """What a tensor of the model is made of."""

    places: tuple[Place, ...]
    dtype: torch.dtype
    """That of the model."""
    converter: Any = None
    """transformers' own, for families whose files hold parts of it, or it as a part of another;
    None = they hold it."""
    first: str = ""
    """Of the tensors that the converter makes of one, the first, by whose name it knows them; "" =
    it makes this one alone."""

    def made(self, name: str, model: Any, read: Callable[[Place], Tensor]) -> Tensor:
        """The tensor of that name."""
        if self.converter is None:
            return read(self.places[0])
        converter = copy.deepcopy(self.converter)
        known = self.first or name
        for place in self.places:
            converter.add_tensor(known, place.name, place.pattern, read(place))
        found = converter.convert(known, model=model, config=model.config).get(name)
        return found[0] if isinstance(found, list) else found


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a model, in its files."""

    loaded: Loaded
    sources: dict[str, Source]
    """By the names of the model."""

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, in the data type that the model has it in, or some of its rows, of which no
        others are then read where files have it as it is.

        Raises:
            InputError: a file cannot be read, or a number in it is not finite.
        """
        source = self.sources[name]
        as_it_is = source.converter is None and rows != slice(None)

        def read(place: Place) -> Tensor:
            with opened(place.file, AGAIN) as file:
                if as_it_is:
                    tensor = file.get_slice(place.name)[rows]
                else:
                    tensor = file.get_tensor(place.name)
            require_finite_tensors(self.loaded.source["model"], [(place.name, tensor)])
            return tensor.to(source.dtype) if tensor.is_floating_point() else tensor

        made = source.made(name, self.loaded.model, read)
        return made if as_it_is or rows == slice(None) else made[rows]


def load_unread(name: str, machine: MachineConfig) -> tuple[Loaded, Checkpoint | None]:
    """A dense model without its weights, and its files; or, where its tensors cannot be read one by
    one, the model in memory and None.

    Raises:
        InputError: no such model, an unknown architecture, or damaged files.
    """
    if not is_packed(name):
        empty = load(name, machine, dense_only=True, empty=True)
        checkpoint = checkpoint_of(empty)
        if checkpoint is not None:
            return empty, checkpoint
    logger.warning("%s is loaded as a whole: its tensors cannot be read one by one", name)
    return load(name, machine, dense_only=True), None


def checkpoint_of(empty: Loaded) -> Checkpoint | None:
    """The files of an empty model; None where a tensor is not made of tensors of these alone.

    Raises:
        InputError: a file cannot be read.
    """
    model: Any = empty.model
    state = model.state_dict()
    folder = None if is_packed(empty.source["model"]) else _folder_of(empty.source)
    if folder is None:
        return None
    found = _by_target(_stored(folder), model, state)
    tied = set(state) - {name for name, _ in chain(model.named_parameters(), model.named_buffers())}
    sources: dict[str, Source] = {}
    for name, like in state.items():
        # The head-less model, as GPT-2 is published, has no prefix.
        source = found.get(name, found.get(name.removeprefix(f"{model.base_model_prefix}.")))
        if source is not None and _gives(source, name, like, model):
            sources[name] = source
        elif name not in tied:
            return None
    return Checkpoint(empty, sources)


def natural(name: str) -> list[tuple[bool, str, int]]:
    """A key by which `layers.10` follows `layers.9`, and numbers come before words: the order in
    which transformers reads and writes tensors."""
    found = (NUMBERED.fullmatch(part) for part in name.split("."))
    parts = [match.groups() for match in found if match]
    return [(bool(word), word, int(digits or -1)) for word, digits in parts]


def _by_target(stored: list[Place], model: Any, state: Mapping[str, Tensor]) -> dict[str, Source]:
    """What the files hold for each tensor of the model: some families had other names before, or
    have in parts there what is one tensor here."""
    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if not isinstance(one, WeightRenaming)]
    found: dict[str, Source] = {}
    for place in sorted(stored, key=lambda place: natural(place.name)):
        target, pattern, used = place.name, None, None
        for renaming in renamings:
            target, _ = renaming.rename_source_key(target)
        for converter in converters:
            if pattern is None:
                target, pattern = converter.rename_source_key(target)
                used = converter if pattern else None
        if target not in state and place.name in state:
            target, pattern, used = place.name, None, None
        for ending in FOUR_BITS if place.stored == BYTES else ():
            if place.name.endswith(ending) and place.name.removesuffix(ending) in state:
                target, pattern, used = place.name.removesuffix(ending), ending, FourBits()
        before = found[target].places if used and target in found else ()
        here = Place(place.file, place.name, place.shape, place.stored, pattern)
        for name in (target, *_others(target, used)):
            dtype = state[name].dtype if name in state else model.dtype
            first = "" if name == target else target
            found[name] = Source((*before, here), dtype, used, first)
    return found


def _others(target: str, converter: Any) -> list[str]:
    """The other tensors that a converter makes of what it makes the first of."""
    first, *others = getattr(converter, "target_patterns", None) or [""]
    return [target.replace(first, other) for other in others if first in target]


def _gives(source: Source, name: str, like: Tensor, model: Any) -> bool:
    """Whether a tensor of that shape comes out, of numbers of that kind."""
    kinds = STORED.get(like.dtype, FLOATS)
    if isinstance(source.converter, FourBits):
        if {place.pattern for place in source.places} != set(FOUR_BITS):
            return False
        kinds = {BYTES}
    if any(place.stored not in kinds for place in source.places):
        return False

    def shaped(place: Place) -> Tensor:
        return torch.empty(place.shape, dtype=like.dtype, device="meta")

    made = source.made(name, model, shaped)
    return made is not None and made.shape == like.shape


def _folder_of(source: dict[str, str]) -> Path | None:
    """The folder of a local model, or of one of the hub in the cache."""
    name = Path(source["model"])
    if name.is_dir():
        return name
    cached = huggingface_hub.try_to_load_from_cache(
        source["model"], "config.json", revision=source["revision"]
    )
    return Path(cached).parent if isinstance(cached, str) else None


def _stored(folder: Path) -> list[Place]:
    """Where each tensor of a folder lies."""
    found: list[Place] = []
    for path in weight_files(folder):
        with opened(path, AGAIN) as file:
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(name)
                found.append(Place(path, name, tuple(part.get_shape()), part.get_dtype()))
    return found
