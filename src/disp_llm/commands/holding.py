"""The original of a run, whole in every process or divided among them."""

import logging
from dataclasses import replace
from typing import Literal

from disp_llm.commands.front import Inputs
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.models.loading import Loaded
from disp_llm.models.sharding import Sharding
from disp_llm.runs.job import Job

logger = logging.getLogger(__name__)


def load_original(job: Job[PruneConfig], inputs: Inputs) -> Loaded:
    """Loads the model as the settings say.

    Raises:
        InputError: no such model, an unknown architecture, damaged files, or a division that there
            cannot be.
    """
    config, process = job.config, job.process
    progress = job.count("loading model")
    progress(0, 1)
    machine = replace(config.machine, device=str(process.device))
    kind = division(job, inputs)
    if kind == "no":
        loaded = inputs.load(config.model, machine, dense_only=True)
    else:
        if config.rounds and process.is_main:
            logger.warning("models in several processes are not timed; `disp-llm bench` does it")
        loaded = Sharding.among(process, kind).load(config.model, machine, dense_only=True)
    progress(1, 1)
    return loaded


def division(job: Job[PruneConfig], inputs: Inputs) -> Literal["no", "full", "hybrid"]:
    """How several processes hold the model.

    Raises:
        InputError: it is to be divided, and there is one process, or the model is in memory.
    """
    asked = job.config.frozen.shard
    if asked in ("full", "hybrid") and job.process.count == 1:
        raise InputError(
            f"{asked}, and there is one process",
            field="shard",
            hint="start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out",
        )
    if asked in ("full", "hybrid") and inputs.model is not None:
        raise InputError(
            f"{asked}, and the model is in memory", field="shard", hint="name a model instead"
        )
    return "no" if asked == "auto" else asked
