"""The original of a pruned model, where it teaches what is left or writes the text for that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from disp_llm.config.errors import InputError, model_is
from disp_llm.config.parts import MachineConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.export.facts import read_facts
from disp_llm.export.original import named_by_run, original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded
from disp_llm.runs.folder import require_same_source
from disp_llm.runs.job import Job
from disp_llm.training.losses import Teacher


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
    name = config.teacher or original_of(Path(config.folder))
    if not name:
        instead = ["`text`"] if writes else []
        instead += ["a `distill` of 0"] if distills else []
        lost = named_by_run(Path(config.folder))
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
    told = read_facts(config.folder).get("source", {})
    original = original.as_recorded(told)
    if not config.teacher and not config.anyway:
        require_same_source(told, original.source, Path(config.folder))
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
