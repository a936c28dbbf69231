"""The original of a run: whole in every process, divided among them, or fetched block by block."""

import logging
from dataclasses import replace

from disp_llm.commands.front import Inputs
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.models.fetching import Fetching
from disp_llm.models.loading import Holding, Loaded
from disp_llm.models.sharding import Sharding
from disp_llm.runs.job import Job

logger = logging.getLogger(__name__)


def load_original(job: Job[PruneConfig], inputs: Inputs) -> Loaded:
    """Loads the model as the settings say.

    Raises:
        InputError: no such model, an unknown architecture, damaged files, or it cannot be held as
            was asked for.
    """
    config, process = job.config, job.process
    progress = job.count("loading model")
    progress(0, 1)
    machine = replace(config.machine, device=str(process.device))
    holding = holding_of(job, inputs)
    if holding is None:
        loaded = inputs.load(config.model, machine, dense_only=True)
    else:
        if config.rounds and process.is_main:
            logger.warning("models are not timed where not all weights lie in one process")
        loaded = holding.load(config.model, machine, dense_only=True)
    progress(1, 1)
    return loaded


def holding_of(job: Job[PruneConfig], inputs: Inputs) -> Holding | None:
    """What holds the model; None = this process has all of it.

    Raises:
        InputError: it is to be divided, and there is one process; or it lies in memory.
    """
    frozen, process = job.config.frozen, job.process
    kind = "no" if frozen.shard == "auto" else frozen.shard
    if kind == "no" and not frozen.is_fetched:
        return None
    if inputs.model is not None:
        raise InputError(
            "is in memory, as it is", field="model", hint="name a folder to have it held otherwise"
        )
    if kind == "no":
        return Fetching(process, frozen)
    if process.count == 1:
        raise InputError(
            f"{kind}, and there is one process",
            field="shard",
            hint="start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out",
        )
    return Sharding.among(process, kind)


def as_held(config: PruneConfig, loaded: Loaded) -> PruneConfig:
    """Settings that suit how a model is held: fetched blocks are run again in the backward pass,
    since autograd would keep their weights, and they are not compiled."""
    if not isinstance(loaded.holding, Fetching):
        return config
    training = replace(config.training, gradient_checkpointing=True, compile="no")
    return replace(config, training=training)
