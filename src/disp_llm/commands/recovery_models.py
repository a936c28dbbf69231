"""The models of a recovery: the student, the source of its weights, and the original, which teaches
it or writes its text.

Every process holds them whole, or they are divided among the processes. The trained student is put
together whole when it is written.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.commands.api import Inputs
from disp_llm.commands.planning import refuse_impossible, sites_of
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.parts import PlaceConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.exporter.carrying import carry, is_size
from disp_llm.exporter.exported import lost_original, original_of, run_of
from disp_llm.exporter.facts import read_facts, size_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection_file import load_masks
from disp_llm.models.loading import Loaded, load, load_config, require_unquantised
from disp_llm.models.sharding import Sharding
from disp_llm.models.trimming import trimmed_like
from disp_llm.runs.folder import require_same_source
from disp_llm.runs.job import Job
from disp_llm.runs.settings import stored_config
from disp_llm.training.weights import trained_parameters


def load_models(
    job: Job[RecoverConfig], inputs: Inputs, writes: bool
) -> tuple[Loaded, Loaded | None]:
    """Loads the student and, if it teaches or `writes` text, the original. Both are divided among
    the processes if `shard` is full."""
    config, progress = job.config, job.count("loading models")
    progress(0, 2)
    refuse_impossible(job, inputs)
    sharding = Sharding.among(job.process) if config.training.shard == "full" else None
    machine = replace(config.machine, device=str(job.process.device))
    student = _student(config, machine, inputs, sharding)
    student = student.as_recorded(job.run.result().get("source", {}))
    if config.weights_from:
        student = take_weights(config, student)
    progress(1, 2)
    load = partial(inputs.load, setting="teacher") if sharding is None else sharding.load
    original = _original(config, machine, student, load, writes)
    progress(2, 2)
    return student, original


def _student(
    config: RecoverConfig, machine: PlaceConfig, inputs: Inputs, sharding: Sharding | None
) -> Loaded:
    def prepare(empty: Loaded) -> None:
        trained_parameters(PrunableModel.of(empty))

    with model_is("model"):
        if "model" not in inputs.models:
            require_unquantised(config.model, load_config(config.model))
        if sharding is None:
            return inputs.load(config.model, machine)
        return sharding.load(config.model, machine, prepare=prepare)


def teacher_of(config: RecoverConfig, writes: bool) -> str:
    """Returns the name of the original; empty if it neither teaches nor writes.

    Raises:
        InputError: the original is needed, and nothing names it.
    """
    distills = config.training.distill > 0
    if not distills and not writes:
        return ""
    if name := config.teacher or original_of(Path(config.model)):
        return name
    instead = ["`text`"] if writes else []
    instead += ["a `distill` of 0"] if distills else []
    lost = lost_original(Path(config.model))
    why = f"{lost} is gone" if lost else "the folder does not name its original"
    raise InputError(
        f"is needed {'to write text' if writes else 'to distil'}, and {why}",
        field="teacher",
        hint=f"name a model, or give {' and '.join(instead)}",
    )


def _original(
    config: RecoverConfig,
    machine: PlaceConfig,
    student: Loaded,
    load: Callable[[str, PlaceConfig], Loaded],
    writes: bool,
) -> Loaded | None:
    """Returns the model that is named or in memory, or the original of an exported folder; None if
    it neither teaches nor writes. Refuses another vocabulary, except a larger one if models are not
    divided."""
    name = teacher_of(config, writes)
    if not name:
        return None
    with model_is("teacher"):
        original = load(name, machine)
    sizes = original.rows, student.rows
    fewer = len(student.tokenizer) < len(original.tokenizer) and student.sharding is None
    if sizes[0] != sizes[1] and not fewer:
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


def take_weights(config: RecoverConfig, student: Loaded) -> Loaded:
    """Copies the trained weights of a larger size of the same run into this size, in place,
    wherever both keep them. All others stay as exported. The result's source also names the larger
    size's revision."""
    folder, larger = Path(config.model), Path(config.weights_from)
    refused = partial(InputError, field="weights_from")
    other = "name the model folder of a larger size of that run, or of its recovery"
    with model_is("weights_from"):
        require_unquantised(config.weights_from, load_config(config.weights_from))
    found, run_of_larger = run_of(folder), run_of(larger)
    if not (found and run_of_larger and found[0].folder.samefile(run_of_larger[0].folder)):
        what = f"{larger} is no size of the run that {folder} comes from"
        raise refused(what, hint=other)
    run, machine = found[0], PlaceConfig(device="cpu", dtype=config.machine.dtype)
    with model_is("teacher"):  # only the original's shapes are needed
        name = original_of(folder) or config.teacher
        original = load(name, machine, dense_only=True, empty=True)
        original = trimmed_like(original, student.tokenizer)
    dense = PrunableModel.of(original, sites_of(stored_config(run.folder), original.family))
    before, after = (
        load_masks(run.selection_file, dense.layout, size_of(one)) for one in (larger, folder)
    )
    if after.compensation.mean_inputs is not None:
        what = "cannot be had where biases stand for what was pruned, of every size other ones"
        raise refused(what, hint="leave it out")
    if not before.kept.sum() > after.kept.sum():
        raise refused(f"{larger} is no larger than {folder}", hint=other)
    with model_is("weights_from"):
        trained = load(config.weights_from, machine)
    given, taken = trained.model.state_dict(), student.model.state_dict()
    for one, masks, state in ((larger, before, given), (folder, after, taken)):
        if not is_size(dense, masks, state):
            what = f"{one} is not what {run.folder} says of that size"
            raise refused(what, hint="bring back the files of that run, or export the size again")
    carry(dense, (before, given), (after, taken))
    source = student.source | {"weights_from_revision": trained.source["revision"]}
    return replace(student, source=source)


Dtypes = dict[str, torch.dtype]


def dtypes_of(model: PreTrainedModel) -> Dtypes:
    """Returns the data type of every parameter, by name, as loaded. Training makes some float32,
    and some families keep routers in float32 whatever the model's data type."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def trained_model(
    config: RecoverConfig, loaded: Loaded, dtypes: Dtypes, tensors: dict[str, Tensor]
) -> PreTrainedModel:
    """Returns the trained model, whole and frozen, in the data types that it was loaded in.

    Args:
        loaded: the model as it was trained.
        tensors: its gathered tensors, if it was trained in parts.
    """
    model = loaded.model
    if loaded.sharding is not None:
        model = load(config.model, loaded.machine(config.machine, "cpu"), empty=True).model
        dtypes = dtypes_of(model)
        model.load_state_dict(tensors, assign=True)
        model.tie_weights()
    for name, parameter in model.requires_grad_(False).named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    return model
