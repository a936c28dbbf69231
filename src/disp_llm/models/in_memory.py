"""A model that a program hands over: whether it is what its configuration says, and that it is left
as it was."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.models.loading import empty_model
from disp_llm.models.wholeness import format_shape

_at_work: set[nn.Module] = set()
"""The modules of models that tasks work with."""
_lock = threading.Lock()


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """While the context lasts, the model has no dropout and takes no gradients; then every module
    and parameter is as it was.

    Raises:
        InputError: another task works with the model, or with a part of it.
    """
    mine = set(model.modules())
    with _lock:
        if not _at_work.isdisjoint(mine):
            raise InputError(
                "is at work in another task",
                field="model",
                hint="wait for that, or give each task a copy (`copy.deepcopy`)",
            )
        _at_work.update(mine)
    modes = {module: module.training for module in mine}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        with _lock:
            _at_work.difference_update(mine)


def require_loaded(model: PreTrainedModel) -> None:
    """Refuses a model that predicts no tokens, or has no weights.

    Raises:
        InputError: it has no head, or lies on the meta device.
    """
    if model.get_output_embeddings() is None:
        raise InputError(
            f"is a {type(model).__name__}, without the head that predicts tokens",
            field="model",
            hint="give the whole model, as AutoModelForCausalLM loads it",
        )
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise InputError(
            f"has no weights: {empty[0]} lies on the meta device",
            field="model",
            hint="load the whole model to one device",
        )


def require_gradients(model: PreTrainedModel | None = None) -> None:
    """Refuses to learn where no gradients are taken.

    Raises:
        InputError: they are switched off here, or were where the weights were made.
    """
    made = model is not None and any(part.is_inference() for part in model.parameters())
    if made or not torch.is_grad_enabled():
        where = "were off where the weights were made" if made else "are off"
        raise InputError(
            f"{where}, and learning needs them",
            field="gradients",
            hint="do that outside of torch.no_grad() and torch.inference_mode()",
        )


def require_as_configured(model: PreTrainedModel) -> None:
    """Refuses a model that was changed by hand, so that what is made of it would not load: whose
    modules and parameters are not those that its configuration makes.

    Raises:
        InputError: naming the first module or parameter that differs, and what to do.
    """
    adapters = [n for n, m in model.named_modules() if type(m).__module__.startswith("peft.")]
    if adapters:
        raise InputError(
            f"has adapters in {adapters[0]}",
            field="model",
            hint="merge them by `merge_and_unload` of PEFT",
        )
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # no other may be fetched
    found, made = _parts(model), _parts(empty_model(config))
    for path in chain(made, found):
        difference = _difference(path, found.get(path), made.get(path))
        if difference:
            raise InputError(
                f"has {difference}",
                field="model",
                hint="say so in its config, or undo it; then save and load it",
            )


Part = tuple[type, str, str]
"""Of a module or parameter its class, its shape, and the first of the paths that it has."""


def _parts(model: nn.Module) -> dict[str, Part]:
    """All modules and parameters by their paths; what has several paths is there several times."""
    first: dict[int, str] = {}
    found: dict[str, Part] = {}
    modules = model.named_modules(remove_duplicate=False)
    for path, part in chain(modules, model.named_parameters(remove_duplicate=False)):
        shape = format_shape(part.shape) if isinstance(part, torch.Tensor) else ""
        found[path] = (type(part), shape, first.setdefault(id(part), path))
    return found


def _difference(path: str, found: Part | None, made: Part | None) -> str:
    """What a model has at a path in place of what its configuration makes there; "" where they
    agree."""
    if found is None:
        return f"no {path}, which its config describes"
    if made is None:
        return f"{path}, which its config does not describe"
    (kind, shape, first), (usual, usual_shape, usual_first) = found, made
    if first != usual_first:
        owners = [
            "of its own" if owner == path else f"in common with {owner}"
            for owner in (first, usual_first)
        ]
        return f"{path} {owners[0]}, and {owners[1]} by its config"
    if not issubclass(kind, usual) or shape != usual_shape:
        is_now, should = (shape, usual_shape) if shape else (kind.__name__, usual.__name__)
        return f"a {path or 'whole'} that is {is_now}, and {should} by its config"
    return ""
