"""How a model can be learned on a machine, what each plan takes, and which is the first that fits:
what `doctor` lists and `prune` takes."""

import os
from dataclasses import dataclass, replace
from typing import Literal

from disp_llm.config.prune import PruneConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory
from disp_llm.runs.job import Process
from disp_llm.training.memory import Memory, learning_memory

ROOM = 0.9
"""Share of the free memory that is planned with: counts are as near as that."""


@dataclass(frozen=True)
class MemoryPlan:
    """Whether processes divide the weights, and whether blocks run again in the backward pass."""

    processes: int
    """Processes that divide the weights; 1 = each has all of them."""
    recomputes: bool
    memory: Memory
    """In each process."""

    @property
    def shard(self) -> Literal["no", "full"]:
        """The setting that asks for it."""
        return "full" if self.processes > 1 else "no"

    @property
    def name(self) -> str:
        """The flags that ask for it."""
        given = ["--shard full"] if self.processes > 1 else []
        given += ["--gradient-checkpointing yes"] if self.recomputes else []
        return " ".join(given) or "as it is"

    @property
    def operations(self) -> float:
        """Operations of a step, as a multiple of a forward pass: that, the gradient of activations
        and, if asked for, the forward pass again."""
        return 3.0 if self.recomputes else 2.0

    def fits(self, free: float) -> bool:
        """Whether it fits into so many bytes."""
        return self.memory.total <= ROOM * free


def memory_plans(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int
) -> list[MemoryPlan]:
    """All plans, the fastest first.

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
            found.append(MemoryPlan(count, choice == "yes", memory))
    return found


def first_plan(
    config: PruneConfig,
    target: PrunableModel,
    process: Process,
    itemsize: int,
    stays_whole: bool,
) -> tuple[MemoryPlan, MemoryPlan]:
    """Of the plans that the settings leave open, the first that fits (the last where none fits),
    and the fastest.

    Args:
        target: the model, which may be empty.
        stays_whole: whether all weights have to lie in each process.
    """
    training = config.training
    known = memory_plans(target, config, process.count, itemsize)
    shards = {"auto": ("no",) if stays_whole else ("no", "full")}.get(
        training.shard, (training.shard,)
    )
    found = [
        plan
        for plan in known
        if plan.shard in shards
        and training.gradient_checkpointing in ("auto", "yes" if plan.recomputes else "no")
    ]
    free = process.least(free_share(process))
    if not next(target.model.parameters()).is_meta:  # then they lie there already
        free += found[0].memory.weights
    return next((plan for plan in found if plan.fits(free)), found[-1]), found[0]


def free_share(process: Process) -> float:
    """Bytes of memory that this process can take: of a machine's, which the processes on it share,
    its part."""
    in_node = int(os.environ.get("LOCAL_WORLD_SIZE", process.count))
    sharing = in_node if process.device.type == "cpu" else 1
    return free_memory(process.device) / sharing
