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
            found.append(MemoryPlan(count, choice, memory))
    return found


def first_plan(
    config: PruneConfig, target: PrunableModel, processes: int, itemsize: int, free: float
) -> tuple[MemoryPlan, MemoryPlan]:
    """Of the plans that the settings allow, the first that fits (the last where none fits), and the
    fastest.

    Args:
        free: bytes that each process can take.
    """
    training = config.training
    found = [
        plan
        for plan in memory_plans(target, config, processes, itemsize)
        if training.shard in ("auto", plan.shard)
        and training.gradient_checkpointing in ("auto", plan.gradient_checkpointing)
    ]
    if not next(target.model.parameters()).is_meta:  # then they lie there already
        free += found[0].memory.weights
    return next((plan for plan in found if plan.fits(free)), found[-1]), found[0]


def free_share(process: Process) -> float:
    """Bytes of memory that this process can take: of a machine's, which the processes on it share,
    its part."""
    in_node = int(os.environ.get("LOCAL_WORLD_SIZE", process.count))
    return free_memory(process.device) / (in_node if process.device.type == "cpu" else 1)
