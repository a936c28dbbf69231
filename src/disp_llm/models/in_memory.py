"""A model that a program hands over: whether it is what its configuration says, and that it is left
as it was."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import nn
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.parts import Dtype, PlaceConfig
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded, empty_model, family_of_any, require_unquantised
from disp_llm.models.source import fingerprint_of, processor_files
from disp_llm.models.wholeness import require_finite

logger = logging.getLogger(__name__)

Place = TypeVar("Place", bound=PlaceConfig)

_at_work: set[nn.Module] = set()
"""The models that tasks work with."""


def loaded(name: str, model: PreTrainedModel, tokenizer: Any, dense_only: bool = False) -> Loaded:
    """The model as if it had been loaded, known by the numbers of all its tensors."""
    family = family_of(model.config) if dense_only else family_of_any(model.config)
    require_finite(name, model)
    source = {"model": name, "revision": fingerprint_of(model)}
    beside = processor_files(Path(name), None) if family.tower and Path(name).is_dir() else ()
    if family.tower and not beside:
        logger.warning("%s has no processor beside it: save one into what is exported", name)
    return Loaded(model, tokenizer, family, source, model.dtype, beside)


def machine_of(model: PreTrainedModel, machine: Place) -> Place:
    """The machine settings: the model stays on its device and in its data type, in which it is then
    loaded again where a later command needs it."""
    if machine.device == "auto":
        machine = replace(machine, device=str(model.device))
    dtype: Any = dtype_name(model.dtype)
    if machine.dtype == "auto" and dtype in get_args(Dtype):
        machine = replace(machine, dtype=dtype)
    return machine


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """While the context lasts, the model has no dropout and takes no gradients; then every module
    and parameter is as it was.

    Raises:
        InputError: another task works with the model.
    """
    if model in _at_work:
        hint = "wait for that, or give each task a copy (`copy.deepcopy`)"
        raise InputError("is at work in another task", field="model", hint=hint)
    _at_work.add(model)
    modes = {module: module.training for module in model.modules()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        _at_work.remove(model)


def require_loaded(model: PreTrainedModel) -> None:
    """Refuses a model that predicts no tokens, or has no weights.

    Raises:
        InputError: it has no head, or lies on the meta device.
    """
    if model.get_output_embeddings() is None:
        what = f"is a {type(model).__name__}, without the head that predicts tokens"
        hint = "give the whole model, as AutoModelForCausalLM loads it"
        raise InputError(what, field="model", hint=hint)
    if any(parameter.is_meta for parameter in model.parameters()):
        hint = "load the whole model to one device"
        raise InputError("has weights on the meta device", field="model", hint=hint)


def require_as_configured(model: PreTrainedModel) -> None:
    """Refuses a model that cannot be learned from, or was changed by hand, so that what is made of
    it would not load: whose modules and parameters are not those that its configuration makes.

    Raises:
        InputError: naming the first module or parameter that differs.
    """
    family_of_any(model.config)
    require_unquantised("the model", model.config)
    config = copy.deepcopy(model.config)
    if config._attn_implementation != "sdpa":  # classes of vision towers are chosen by it
        config._attn_implementation = "eager"  # none may be fetched
    found, made = _parts(model), _parts(empty_model(config))
    for path in chain(made, found):
        if found.get(path) != made.get(path):
            raise InputError(
                f"is not what its config makes at {path or 'its class'}",
                field="model",
                hint="say so in its config, or undo it (`merge_and_unload` of PEFT merges "
                "adapters); then save and load it",
            )


def _parts(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Of all modules and parameters the class, the shape, and the first of the paths that it has,
    by every path."""
    first: dict[int, str] = {}
    modules = model.named_modules(remove_duplicate=False)
    return {
        path: (type(part), getattr(part, "shape", None), first.setdefault(id(part), path))
        for path, part in chain(modules, model.named_parameters(remove_duplicate=False))
    }
