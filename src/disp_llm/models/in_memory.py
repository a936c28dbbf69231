"""A model object from a program: checks that it matches its configuration, and restores its state
after use."""

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
"""Models in use by a task."""


def loaded(name: str, model: PreTrainedModel, tokenizer: Any, dense_only: bool = False) -> Loaded:
    """Returns the model as `load` would; its revision is a hash of all its tensors."""
    family = family_of(model.config) if dense_only else family_of_any(model.config)
    require_finite(name, model)
    source = {"model": name, "revision": fingerprint_of(model)}
    beside = processor_files(Path(name), None) if family.tower and Path(name).is_dir() else ()
    if family.tower and not beside:
        logger.warning("%s has no processor beside it: save one into what is exported", name)
    return Loaded(model, tokenizer, family, source, model.dtype, beside)


def machine_of(model: PreTrainedModel, machine: Place) -> Place:
    """Replaces `auto` in the machine settings by the model's device and data type, so that a later
    command loads it the same way."""
    if machine.device == "auto":
        machine = replace(machine, device=str(model.device))
    dtype: Any = dtype_name(model.dtype)
    if machine.dtype == "auto" and dtype in get_args(Dtype):
        machine = replace(machine, dtype=dtype)
    return machine


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model in eval mode without gradients, and restores every module and parameter when
    the context ends.

    Raises:
        InputError: another task uses the model.
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
    """Refuses a model that cannot predict tokens.

    Raises:
        InputError: the model has no output head, or weights on the meta device.
    """
    if model.get_output_embeddings() is None:
        what = f"is a {type(model).__name__}, without the head that predicts tokens"
        hint = "give the whole model, as AutoModelForCausalLM loads it"
        raise InputError(what, field="model", hint=hint)
    if any(parameter.is_meta for parameter in model.parameters()):
        hint = "load the whole model to one device"
        raise InputError("has weights on the meta device", field="model", hint=hint)


def require_as_configured(model: PreTrainedModel) -> None:
    """Refuses a model that is unsupported, quantised, or other than what its configuration builds:
    exports of a model changed by hand would not load.

    Raises:
        InputError: names the first module or parameter that differs.
    """
    family_of_any(model.config)
    require_unquantised("the model", model.config)
    config = copy.deepcopy(model.config)
    if config._attn_implementation != "sdpa":  # it selects the classes of vision towers
        config._attn_implementation = "eager"  # no kernel may be fetched from the hub
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
    """Maps every path of a module or parameter to its class, its shape, and the first of its paths,
    which shows ties."""
    first: dict[int, str] = {}
    modules = model.named_modules(remove_duplicate=False)
    return {
        path: (type(part), getattr(part, "shape", None), first.setdefault(id(part), path))
        for path, part in chain(modules, model.named_parameters(remove_duplicate=False))
    }
