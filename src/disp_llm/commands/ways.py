"""In which ways a model can be learned on a machine, what each takes, and which is the first that
fits: what `doctor` says and `prune` does.
"""

import os
from dataclasses import dataclass, replace

from disp_llm.config.frozen import FrozenConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory
from disp_llm.models.loading import is_packed
from disp_llm.runs.job import Process
from disp_llm.training.memory import Memory, learning_memory

ROOM = 0.9
"""Share of the free memory that is planned with: counts are as near as that."""


@dataclass(frozen=True)
class Way:
    """How weights are held and whether blocks run again in the backward pass."""

    frozen: FrozenConfig
    recomputes: bool
    processes: int
    """Processes that divide the weights, or 1."""
    memory: Memory
    """In each process."""

    @property
    def flags(self) -> str:
        """What asks for it."""
        frozen = self.frozen
        given = {
            "--shard": frozen.shard if self.processes > 1 else "no",
            "--base-precision": "no" if frozen.base_precision == "same" else frozen.base_precision,
            "--offload": frozen.offload,
            "--gradient-checkpointing": "yes" if self._is_asked_for else "no",
        }
        return " ".join(f"{flag} {value}" for flag, value in given.items() if value != "no")

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.flags or "as it is"

    @property
    def operations(self) -> float:
        """Operations of a step, as a multiple of a forward pass: that, the gradient of activations
        and, if asked for, the forward pass again."""
        return 3.0 if self.recomputes else 2.0

    @property
    def exact(self) -> bool:
        """Whether masks are the same as with the original's weights."""
        return self.frozen.base_precision == "same"

    def fits(self, free: float) -> bool:
        """Whether it fits into so many bytes."""
        return self.memory.total <= ROOM * free

    @property
    def _is_asked_for(self) -> bool:
        return self.recomputes and not self.frozen.is_fetched


def ways(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int, on_gpu: bool
) -> list[Way]:
    """All ways, the fastest first; of those that round, only the last two.

    Args:
        target: the model, which may be empty.
        processes: how many there are, each on its own device.
        itemsize: bytes of a number of the model.
        on_gpu: whether weights can wait in the machine's memory instead of the device's.
    """
    whole, parts = FrozenConfig(shard="no"), FrozenConfig(shard="full")
    asked = [(whole, False), (whole, True)]
    if processes > 1:
        asked += [(parts, False), (parts, True)]
    if not is_packed(config.model):
        waiting = ("cpu", "disk") if on_gpu else ("disk",)
        asked += [(replace(whole, offload=place), True) for place in waiting]
        asked += [(replace(whole, base_precision=bits), True) for bits in ("int8", "nf4")]
    found: list[Way] = []
    for frozen, recomputes in asked:
        choice = "yes" if recomputes else "no"
        training = replace(config.training, gradient_checkpointing=choice)
        settings = replace(config, training=training)
        memory = learning_memory(target, settings, frozen, processes, itemsize)
        found.append(Way(frozen, recomputes, processes if frozen == parts else 1, memory))
    return found


def first_way(
    config: PruneConfig,
    target: PrunableModel,
    process: Process,
    itemsize: int,
    stays_whole: bool,
) -> tuple[Way, Way]:
    """The way that is taken where nobody asks for one: the first that fits and is exact (the last
    of these where none fits), and the way that would be fastest.

    Args:
        target: the model, which may be empty.
        stays_whole: whether all weights have to lie in each process.
    """
    count = in_node(process) if config.frozen.shard == "hybrid" else process.count
    on_gpu = process.device.type != "cpu"
    known = ways(target, config, count, itemsize, on_gpu)
    found = [way for way in known if _agrees(way, config)]
    free = process.least(free_share(process))
    if stays_whole:  # what was asked for against it is refused when the settings are known
        whole = [way for way in found if way.frozen.shard == "no" and not way.frozen.is_fetched]
        found = whole or found
    if not next(target.model.parameters()).is_meta:  # then they lie there already
        free += found[0].memory.weights
    return next((way for way in found if way.fits(free)), found[-1]), found[0]


def free_share(process: Process) -> float:
    """Bytes of memory that this process can take: of a machine's, which the processes on it share,
    its part."""
    sharing = in_node(process) if process.device.type == "cpu" else 1
    return free_memory(process.device) / sharing


def in_node(process: Process) -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process.count))


def _agrees(way: Way, config: PruneConfig) -> bool:
    """Whether a way is exact and nothing else than what was asked for."""
    asked, recomputes = config.frozen, config.training.gradient_checkpointing
    shard = asked.shard == "auto" or (asked.shard == "no") == (way.frozen.shard == "no")
    return way.exact and shard and recomputes in ("auto", "yes" if way.recomputes else "no")
