"""Where the weights of a run lie, whole in every process or divided among them, and whether blocks
run again in the backward pass: as asked for, or by the first plan that fits. `doctor` lists these.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from disp_llm.commands.api import Inputs
from disp_llm.config.effect import usual_settings
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import free_memory, resolve_dtype
from disp_llm.models.loading import Loaded, load_shapes
from disp_llm.models.windows import within_positions
from disp_llm.runs.job import Job
from disp_llm.training.memory import Memory, learning_memory

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
    refuse_impossible(job, inputs)
    job = replace(job, config=_settled(job, inputs))
    config, process = job.config, job.process
    machine = replace(config.machine, device=str(process.device))
    if config.training.shard == "full":
        from disp_llm.models.sharding import Sharding

        refuse_impossible(job, inputs)
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


def refuse_impossible(job: Job, inputs: Inputs) -> None:
    """Refuses to divide a model that lies in memory, or that nobody shares; and to learn from
    examples with a loss of their own beside text where processes divide a model: those take one
    pass and this takes another number, and processes would wait for each other."""
    text, given = job.config.text, inputs.texts.get("examples")
    if job.config.training.shard != "full":
        return
    if inputs.models:
        hint = "name a folder to have it divided"
        raise InputError("is in memory, as it is", field=next(iter(inputs.models)), hint=hint)
    if job.process.count == 1:
        hint = "start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out"
        raise InputError("full, and there is one process", field="shard", hint=hint)
    own = given is not None and given.have_own_losses
    if own and (text.learns_from_text or "text" in inputs.texts):
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
    model = inputs.models.get("model")
    if model is not None:
        target = PrunableModel(model, family_of(model.config))
        dtype = model.dtype
    else:
        target = PrunableModel(*load_shapes(config.model))
        dtype = resolve_dtype(config.machine.dtype, job.process.device)
    config = within_positions(config, usual_settings(config), target.model.config)
    reads = method_named(config.method).reads_weights or config.budget.budget == "latency"
    stays_whole = model is not None or reads or config.learn.learns_weights
    if stays_whole and training.shard == "auto":
        config = replace(config, training=replace(config.training, shard="no"))
    # Processes on one machine share its memory; each has a device to itself.
    process, count = job.process, job.process.count
    in_node = int(os.environ.get("LOCAL_WORLD_SIZE", count)) if process.device.type == "cpu" else 1
    free = process.least(free_memory(process.device) / in_node)
    plans = memory_plans(target, config, count, dtype.itemsize)
    if model is not None:  # its weights lie there already
        free += plans[0].memory.weights
    plan = first_plan(plans, free)
    if plan != plans[0] and process.is_main:
        needed, takes = (one.memory.total / 2**30 for one in (plans[0], plan))
        logger.warning("learning would take %.1f GiB; with %s it is %.1f", needed, plan.name, takes)
    chosen = {"shard": plan.shard, "gradient_checkpointing": plan.gradient_checkpointing}
    return replace(config, training=replace(config.training, **chosen))


ROOM = 0.9
"""Share of the free memory that is planned with: counts are as near as that."""


@dataclass(frozen=True)
class MemoryPlan:
    """Two settings, and what learning takes with them."""

    processes: int
    """Processes that divide the weights; 1 = each has all of them."""
    gradient_checkpointing: Literal["no", "yes"]
    memory: Memory
    """In each process."""

    @property
    def shard(self) -> Literal["no", "full"]:
        """The other setting."""
        return "full" if self.processes > 1 else "no"

    @property
    def name(self) -> str:
        """The flags that ask for it."""
        given = {"--shard": self.shard, "--gradient-checkpointing": self.gradient_checkpointing}
        asked = (f"{flag} {value}" for flag, value in given.items() if value != "no")
        return " ".join(asked) or "as it is"

    def fits(self, free: float) -> bool:
        """Whether it fits into so many bytes."""
        return self.memory.total <= ROOM * free


def memory_plans(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int
) -> list[MemoryPlan]:
    """The plans that the settings allow, the fastest first.

    Args:
        target: the model, which may be empty.
        processes: how many there are, each on its own device.
        itemsize: bytes of a number of the model.
    """
    found: list[MemoryPlan] = []
    for count in dict.fromkeys((1, processes)):
        for choice in ("no", "yes"):
            training = replace(config.training, gradient_checkpointing=choice)
            memory = learning_memory(target, replace(config, training=training), count, itemsize)
            found.append(MemoryPlan(count, choice, memory))
    asked = config.training
    return [
        plan
        for plan in found
        if asked.shard in ("auto", plan.shard)
        and asked.gradient_checkpointing in ("auto", plan.gradient_checkpointing)
    ]


def first_plan(plans: list[MemoryPlan], free: float) -> MemoryPlan:
    """The first plan that fits into so many bytes, or the last where none does."""
    return next((plan for plan in plans if plan.fits(free)), plans[-1])
