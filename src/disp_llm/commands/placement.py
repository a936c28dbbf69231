"""Where the weights of a run lie: whole in every process, or divided among them; as asked for, or
as they fit."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from disp_llm.commands.api import Inputs
from disp_llm.commands.memory_plans import first_plan, free_share
from disp_llm.config.errors import InputError
from disp_llm.config.learning import Shard
from disp_llm.config.parts import TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import resolve_dtype
from disp_llm.models.loading import Loaded, load_shapes
from disp_llm.models.windows import within_positions
from disp_llm.runs.job import Job, Process

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Settings = TypeVar("Settings", bound=PruneConfig | RecoverConfig)


def as_begun(job: Job[Settings]) -> Job[Settings]:
    """The job with as many windows in each process that a step reads what it read when the run was
    begun, with however many processes that was."""
    count, training = job.process.count, job.config.training
    begun = job.run.result().get("processes", count)
    windows = training.batch * begun
    if windows % count:
        raise InputError(
            f"{begun} processes read {windows} windows a step, which {count} cannot share evenly",
            field="resume",
            hint=f"start as many as divide {windows}",
        )
    training = replace(training, batch=windows // count)
    return replace(job, config=replace(job.config, training=training))


def load_original(job: Job[PruneConfig], inputs: Inputs) -> tuple[Job[PruneConfig], Loaded]:
    """Loads the model as the settings say; the job has settings that leave nothing of that open."""
    progress = job.count("loading model")
    progress(0, 1)
    in_memory = "" if inputs.model is None else "model"
    refuse_impossible(job.process, job.config.training.shard, in_memory)
    job = replace(job, config=_settled(job, inputs))
    config, process = job.config, job.process
    machine = replace(config.machine, device=str(process.device))
    if config.training.shard == "full":
        from disp_llm.models.sharding import Sharding

        refuse_own_losses(config.text, inputs)
        if config.rounds and process.is_main:
            logger.warning("models are not timed where processes divide the weights")
        loaded = Sharding.among(process).load(config.model, machine, dense_only=True)
    else:
        loaded = inputs.load(config.model, machine, dense_only=True)
    progress(1, 1)
    return job, loaded.as_recorded(job.run.result().get("source", {}))


def first_alone(
    job: Job, loaded: Loaded, work: Callable[..., Result], *arguments: Any
) -> Result | None:
    """Lets the first process work while the others wait, or take part where they hold the model
    together; None in the others."""
    if loaded.sharding is not None:
        return loaded.sharding.lead(partial(work, *arguments))
    result = work(*arguments) if job.process.is_main else None
    job.process.wait()
    return result


def refuse_impossible(process: Process, shard: Shard, in_memory: str) -> None:
    """Refuses to divide a model that lies in memory, or that nobody shares.

    Args:
        in_memory: the setting that would name the model; "" = it does not lie in memory.
    """
    if shard != "full":
        return
    if in_memory:
        hint = "name a folder to have it divided"
        raise InputError("is in memory, as it is", field=in_memory, hint=hint)
    if process.count == 1:
        hint = "start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out"
        raise InputError("full, and there is one process", field="shard", hint=hint)


def refuse_own_losses(text: TextConfig, inputs: Inputs) -> None:
    """Refuses examples with a loss of their own beside text where processes divide a model: those
    take one pass and this takes another number, and processes would wait for each other."""
    given = inputs.texts.examples
    own = given is not None and given.have_own_losses
    if own and (text.learns_from_text or inputs.texts.text is not None):
        raise InputError(
            "examples with a loss of their own cannot be learned from beside text by processes "
            "that divide the model",
            field="shard",
            hint="give one of both, or a `shard` of no",
        )


def _settled(job: Job[PruneConfig], inputs: Inputs) -> PruneConfig:
    """Settings that say how the weights lie and whether blocks run again in the backward pass: as
    asked for and, where that is left open, as it fits."""
    config, training = job.config, job.config.training
    if "auto" not in (training.shard, training.gradient_checkpointing):
        return config
    if inputs.model is not None:
        target = PrunableModel(inputs.model, family_of(inputs.model.config))
        dtype = inputs.model.dtype
    else:
        target = PrunableModel(*load_shapes(config.model))
        dtype = resolve_dtype(config.machine.dtype, job.process.device)
    config = within_positions(config, target.model.config)
    reads = method_named(config.method).reads_weights or config.budget.budget == "latency"
    stays_whole = inputs.model is not None or reads or config.learn.learns_weights
    if stays_whole and training.shard == "auto":
        config = replace(config, training=replace(config.training, shard="no"))
    count, free = job.process.count, job.process.least(free_share(job.process))
    plan, fastest = first_plan(config, target, count, dtype.itemsize, free)
    if plan != fastest and job.process.is_main:
        needed, takes = (one.memory.total / 2**30 for one in (fastest, plan))
        logger.warning("learning would take %.1f GiB; with %s it is %.1f", needed, plan.name, takes)
    chosen = {"shard": plan.shard, "gradient_checkpointing": plan.gradient_checkpointing}
    return replace(config, training=replace(config.training, **chosen))
