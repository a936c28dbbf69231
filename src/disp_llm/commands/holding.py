"""The original of a run: whole in every process, divided among them, or fetched block by block; as
was asked for, or as it fits."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from disp_llm.commands.front import Inputs
from disp_llm.commands.ways import first_way
from disp_llm.config.effect import usual_settings
from disp_llm.config.errors import InputError
from disp_llm.config.frozen import Shard
from disp_llm.config.parts import TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import resolve_dtype
from disp_llm.models.fetching import Fetching
from disp_llm.models.loading import Holding, Loaded, load_shapes
from disp_llm.models.sharding import Sharding
from disp_llm.models.windows import within_positions
from disp_llm.runs.job import Job, Process

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Settings = TypeVar("Settings", bound=PruneConfig | RecoverConfig)


def as_begun(job: Job[Settings]) -> Job[Settings]:
    """The job with as many windows in each process that a step reads what it read when the run was
    begun, with however many processes that was.

    Raises:
        InputError: these processes cannot share the windows of a step evenly.
    """
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
    """Loads the model as the settings say; the job with settings in which nothing of that is open.

    Raises:
        InputError: no such model, an unknown architecture, damaged files, or it cannot be held as
            was asked for.
    """
    progress = job.count("loading model")
    progress(0, 1)
    frozen, in_memory = job.config.frozen, "" if inputs.model is None else "model"
    refuse_impossible(job.process, frozen.shard, in_memory, frozen.is_fetched)
    job = replace(job, config=_settled(job, inputs))
    config, process = job.config, job.process
    machine = replace(config.machine, device=str(process.device))
    holding = _holding(job)
    if isinstance(holding, Sharding):
        refuse_own_losses(config.text, inputs)
    if holding is None:
        loaded = inputs.load(config.model, machine, dense_only=True)
    else:
        if config.rounds and process.is_main:
            logger.warning("models are not timed where not all weights lie in one process")
        loaded = holding.load(config.model, machine, dense_only=True)
    progress(1, 1)
    return job, loaded


def first_alone(job: Job, loaded: Loaded, work: Callable[[], Result]) -> Result | None:
    """Lets the first process work while the others wait, or take part where they hold the model
    together; None in the others."""
    if loaded.holding is not None:
        return loaded.holding.lead(work)
    result = work() if job.process.is_main else None
    job.process.wait()
    return result


def _holding(job: Job[PruneConfig]) -> Holding | None:
    """What holds the model; None = this process has all of it."""
    frozen, process = job.config.frozen, job.process
    if frozen.is_fetched:
        return Fetching(process, frozen)
    if frozen.shard in ("auto", "no"):
        return None
    return Sharding.among(process, frozen.shard)


def refuse_impossible(
    process: Process, shard: Shard, in_memory: str, is_fetched: bool = False
) -> None:
    """Refuses, before anything is counted, to hold a model that lies in memory in another way, and
    to divide one that nobody shares.

    Args:
        in_memory: the setting that would name the model; "" = it does not lie in memory.

    Raises:
        InputError: naming the setting.
    """
    if in_memory and (is_fetched or shard not in ("auto", "no")):
        raise InputError(
            "is in memory, as it is",
            field=in_memory,
            hint="name a folder to have it held otherwise",
        )
    if shard not in ("auto", "no") and process.count == 1:
        raise InputError(
            f"{shard}, and there is one process",
            field="shard",
            hint="start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out",
        )


def refuse_own_losses(text: TextConfig, inputs: Inputs) -> None:
    """Refuses examples with a loss of their own beside text where processes hold a model together:
    those take one pass and this takes another number, and processes would wait for each other.

    Raises:
        InputError: there are both.
    """
    given = inputs.texts.examples
    own = given is not None and given.have_own_losses
    if own and (text.learns_from_text or inputs.texts.text is not None):
        raise InputError(
            "examples with a loss of their own cannot be learned from beside text by processes "
            "that hold the model together",
            field="shard",
            hint="give one of both, or a `shard` of no",
        )


def _settled(job: Job[PruneConfig], inputs: Inputs) -> PruneConfig:
    """Settings in which it is decided how the weights are held and whether blocks run again in the
    backward pass: as was asked for and, where that is left open, as it fits. Fetched blocks always
    run again, since autograd would keep their weights, and are not compiled."""
    config, frozen, training = job.config, job.config.frozen, job.config.training
    if frozen.is_fetched:
        training = replace(training, gradient_checkpointing="yes", compile="no")
        return replace(config, frozen=replace(frozen, shard="no"), training=training)
    if frozen.shard != "auto" and training.gradient_checkpointing != "auto":
        return config
    if inputs.model is not None:
        target = PrunableModel(inputs.model, family_of(inputs.model.config))
        config, dtype = replace(config, frozen=replace(frozen, shard="no")), inputs.model.dtype
    else:
        target = PrunableModel(*load_shapes(config.model))
        dtype = resolve_dtype(config.machine.dtype, job.process.device)
    config = within_positions(config, usual_settings(config), target.model.config)
    reads = method_named(config.method).reads_weights or config.budget.budget == "latency"
    reads = reads or config.learn.learns_weights
    stays_whole = inputs.model is not None or reads
    way, fastest = first_way(config, target, job.process, dtype.itemsize, stays_whole)
    if way != fastest and job.process.is_main:
        needed, takes = (one.memory.total / 2**30 for one in (fastest, way))
        logger.warning("learning would take %.1f GiB; with %s it is %.1f", needed, way.name, takes)
    choice = "yes" if way.recomputes else "no"
    training = replace(config.training, gradient_checkpointing=choice)
    if way.frozen.is_fetched:
        training = replace(training, compile="no")
    shard = frozen.shard if frozen.shard == "hybrid" else way.frozen.shard
    return replace(config, frozen=replace(way.frozen, shard=shard), training=training)
