"""What the original of a pruned model scores on a suite: as its card says, as the teacher does, or
measured for that alone."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from disp_llm.commands.api import Inputs
from disp_llm.commands.measuring import Measuring, measured_apart
from disp_llm.config.errors import InputError
from disp_llm.config.recover import RecoverConfig
from disp_llm.evaluation.suites import comparable
from disp_llm.export.facts import FACTS, original_of, read_facts
from disp_llm.runs.job import Job
from disp_llm.runs.results import OriginalResult, from_json
from disp_llm.runs.scores import Scores
from disp_llm.training.losses import Teacher

if TYPE_CHECKING:
    from disp_llm.models.sharding import Sharding


def scores_of_original(
    job: Job[RecoverConfig],
    measuring: Measuring,
    student: Scores,
    teacher: Teacher | None,
    sharding: "Sharding | None",
) -> Scores:
    """The scores that a trained model is held against: those in the card of its folder, if they are
    of this suite; else those of the teacher, where that is the original; else the original is
    loaded and measured: where the run of the folder has it or, where nothing tells, as the teacher
    is named, though it teaches nothing. A model that was not pruned is its own original.

    Args:
        student: what the pruned model scores before it is trained.
        sharding: what holds models; None = each process has all of them.
    """
    folder = Path(job.config.model)
    told = read_facts(folder)
    if told:
        dense = from_json(OriginalResult, told["original"], str(folder / FACTS))
        if dense.scores is not None and comparable(student, dense.scores):
            return dense.scores
    if teacher is not None:
        if not told or teacher.revision == told["source"]["revision"]:
            found = measuring.scores(teacher.target, "original")
            assert found is not None
            return found
    elif not told:
        return student
    return _measured(job, measuring, told.get("source", {}), sharding)


def _measured(
    job: Job[RecoverConfig],
    measuring: Measuring,
    source: dict[str, str],
    sharding: "Sharding | None",
) -> Scores:
    """What the original scores that the card of a folder tells of by its `source`."""
    hint = "name the original as the `teacher`"
    known, named = original_of(Path(job.config.model)), job.config.teacher
    name = known or ("" if job.config.training.distill else named)
    if not name:
        what = f"nothing says where the original of {job.config.model} lies"
        raise InputError(what, field="suite", hint=hint)
    assert measuring.board is not None
    board = replace(measuring.board, progress=job.progress)
    machine = replace(job.config.machine, device=str(job.process.device))
    try:
        facts, scores = measured_apart(board, sharding or Inputs(), name, machine, source)
    except InputError as error:
        if error.field != "model":
            raise
        raise InputError(f"the original: {error.what}", field="suite", hint=hint) from error
    if not known and facts["revision"] != source["revision"]:
        what = f"{name} is not what {job.config.model} was made from"
        raise InputError(what, field="teacher", hint="name the original")
    return scores
