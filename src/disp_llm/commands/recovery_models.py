"""The models of a recovery: what is trained, and the original that teaches it or writes its text.

Both lie whole in every process or are divided among them; what was trained is put together whole
when it is written.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.commands.api import Inputs
from disp_llm.commands.placement import refuse_impossible, refuse_own_losses
from disp_llm.commands.warm_start import take_weights
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.parts import MachineConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.exporter.exported import named_by_run, original_of
from disp_llm.exporter.facts import read_facts
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import (
    Loaded,
    load,
    load_config,
    require_unquantised,
)
from disp_llm.models.sharding import Sharding
from disp_llm.models.windows import require_positions, within_positions
from disp_llm.runs.folder import require_same_source
from disp_llm.runs.job import Job
from disp_llm.training.losses import Teacher
from disp_llm.training.weights import trained_parameters


@dataclass(frozen=True)
class Models:
    """What is trained, and what it comes from."""

    student: Loaded
    original: Loaded | None
    """None where it neither teaches nor writes."""

    def __iter__(self) -> Iterator[PreTrainedModel]:
        """Those that there are."""
        return (one.model for one in (self.student, self.original) if one is not None)


def load_models(job: Job[RecoverConfig], inputs: Inputs, taught: Inputs, writes: bool) -> Models:
    """Student and original, divided among the processes where they are to be.

    Args:
        writes: whether the original writes the learning text.
    """
    config, progress = job.config, job.count("loading models")
    progress(0, 2)
    sharding = sharding_of(job, (inputs, taught))
    machine = replace(config.machine, device=str(job.process.device))
    student = load_student(config, machine, inputs, sharding)
    student = student.as_recorded(job.run.result().get("source", {}))
    if config.weights_from:
        student = take_weights(config, student)
    progress(1, 2)
    load = taught.load if sharding is None else sharding.load
    original = load_original(job, student, load, writes)
    progress(2, 2)
    return Models(student, original)


def with_windows(job: Job[RecoverConfig], models: Models) -> Job[RecoverConfig]:
    """The job with windows that all models can read."""
    config = within_positions(job.config, *(model.config for model in models))
    for model in models:
        require_positions(model, config.training.length, "length")
    return replace(job, config=config)


def sharding_of(job: Job[RecoverConfig], inputs: tuple[Inputs, Inputs]) -> Sharding | None:
    """What divides both models among the processes, if that is asked for; None = each has all.

    Args:
        inputs: what of the two lies in memory.

    Raises:
        InputError: they cannot be held as was asked for.
    """
    shard, process = job.config.training.shard, job.process
    in_memory = next((field for field, one in zip(FIELDS, inputs, strict=True) if one.model), "")
    refuse_impossible(process, shard, in_memory)
    if shard != "full":
        return None
    if job.config.training.weight_optimizer == "muon":
        raise InputError(
            "muon steps matrices that lie in every process as a whole",
            field="weight_optimizer",
            hint="leave it out, or give a `shard` of no",
        )
    refuse_own_losses(job.config.text, inputs[0])
    return Sharding.among(process)


FIELDS = ("model", "teacher")
"""The settings that name the two."""


def load_student(
    config: RecoverConfig, machine: MachineConfig, inputs: Inputs, sharding: Sharding | None
) -> Loaded:
    """Loads what is trained."""

    def prepare(empty: Loaded) -> None:
        trained_parameters(PrunableModel.of(empty))

    with model_is("model"):
        if inputs.model is None:
            require_unquantised(config.model, load_config(config.model))
        if sharding is None:
            return inputs.load(config.model, machine)
        return sharding.load(config.model, machine, prepare=prepare)


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The data type of every parameter, by its name. As it was loaded, since training makes some of
    them float32, and some families keep routers in float32 whatever the model is."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def with_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]) -> Any:
    """A trained model, in place, with parameters of these data types that learn no more."""
    for name, parameter in model.requires_grad_(False).named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    return model


def put_together(config: RecoverConfig, loaded: Loaded, tensors: dict[str, Tensor]) -> Any:
    """The trained model, whole, in the machine's memory and in the data types that it came in.

    Args:
        loaded: as it was trained, in parts.
        tensors: that were gathered of it.
    """
    empty = load(config.model, _machine(config, loaded, "cpu"), empty=True)
    dtypes = dtypes_of(empty.model)
    empty.model.load_state_dict(tensors, assign=True)
    empty.model.tie_weights()
    return with_dtypes(empty.model, dtypes)


@contextlib.contextmanager
def to_measure(
    config: RecoverConfig, made: PreTrainedModel, loaded: Loaded, folder: Path
) -> Iterator[PrunableModel]:
    """The trained model where it can run: as it is or, where processes hold models together, from
    its folder, held likewise.

    Args:
        loaded: as it was trained.
        folder: where it was written.
    """
    if loaded.sharding is None:
        yield PrunableModel(made, loaded.family)
        return
    again = loaded.sharding.load(str(folder), _machine(config, loaded, str(loaded.model.device)))
    yield PrunableModel.of(again)
    loaded.sharding.drop(again.model)


def _machine(config: RecoverConfig, loaded: Loaded, device: str) -> MachineConfig:
    """Another device, and the data type that a model was loaded in."""
    dtype: Any = dtype_name(loaded.dtype)
    return replace(config.machine, device=device, dtype=dtype)


def load_original(
    job: Job[RecoverConfig],
    student: Loaded,
    load: Callable[[str, MachineConfig], Loaded],
    writes: bool,
) -> Loaded | None:
    """The model that is named or in memory, or the original of an exported folder; None where it
    neither teaches nor writes.

    Args:
        load: gives the model of a name, or the one that is in memory.
        writes: whether it writes the learning text.

    Raises:
        InputError: there is none, or its vocabulary is another one.
    """
    config = job.config
    distills = config.training.distill > 0
    if not distills and not writes:
        return None
    name = config.teacher or original_of(Path(config.model))
    if not name:
        instead = ["`text`"] if writes else []
        instead += ["a `distill` of 0"] if distills else []
        lost = named_by_run(Path(config.model))
        gone = lost and not Path(lost).exists()
        why = f"{lost} is gone" if gone else "the folder does not name its original"
        raise InputError(
            f"is needed {'to write text' if writes else 'to distil'}, and {why}",
            field="teacher",
            hint=f"name a model, or give {' and '.join(instead)}",
        )
    machine = replace(config.machine, device=str(job.process.device))
    with model_is("teacher"):
        original = load(name, machine)
    sizes = [m.get_input_embeddings().num_embeddings for m in (original.model, student.model)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{name} has {sizes[0]} tokens, the student {sizes[1]}",
            field="teacher",
            hint="name a model of the same vocabulary",
        )
    told = read_facts(config.model).get("source", {})
    original = original.as_recorded(told)
    if not config.teacher and not config.anyway:
        require_same_source(told, original.source, Path(config.model))
    return original


def teacher_of(config: RecoverConfig, original: Loaded | None) -> Teacher | None:
    """The original as teacher, where the loss follows one."""
    if original is None or not config.training.distill:
        return None
    return Teacher(
        PrunableModel.of(original),
        config.training.distill,
        revision=original.source["revision"],
    )
