"""What a long task runs with: its settings, folder, processes and callbacks."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from disp_llm.runs.folder import Run
from disp_llm.runs.progress import ProgressCallback, Ticks, counting, silent

Config = TypeVar("Config")


@dataclass(frozen=True)
class Process:
    """This process, alone or one of several under `accelerate launch`, and its device."""

    accelerator: Accelerator
    device: torch.device
    group: Any = None
    """All processes, as a group that soon gives up on one that does not answer; None = only this
    one."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator.is_main_process

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    def track(self, of: str, figures: dict[str, Any], step: int) -> None:
        """Hands numbers to the accelerator's trackers, if it has any, as `train/loss` or
        `keep-0.5/perplexity`."""
        numbers = {
            f"{of}/{key}": value
            for key, value in figures.items()
            if isinstance(value, int | float) and key != "step"
        }
        self.accelerator.log(numbers, step=step)

    def own(self, batch: Tensor) -> Tensor:
        """Returns this process's rows of a batch that all processes drew alike."""
        return batch.chunk(self.count)[self.index]

    def wait(self) -> None:
        """Waits until all processes have come here."""
        self.accelerator.wait_for_everyone()

    def least(self, value: float) -> float:
        """Returns the smallest of all processes' values."""
        if self.group is None:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self._reduced(found, torch.distributed.ReduceOp.MIN))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place, and returns it; all must call this."""
        return self._reduced(tensor, torch.distributed.ReduceOp.SUM)

    def mean(self, tensor: Tensor) -> Tensor:
        """Averages a tensor over all processes, likewise."""
        return self.sum(tensor).div_(self.count)

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        if self.group is not None:
            torch.distributed.all_reduce(tensor, how, group=self.group)
        return tensor


class Interrupted(KeyboardInterrupt):
    """The task was asked to stop; what resuming needs has been written."""


def never() -> bool:
    """Never asks the task to stop."""
    return False


@dataclass(frozen=True)
class Job(Generic[Config]):
    """One task of `prune`, `recover` or `compare`."""

    config: Config
    run: Run
    process: Process
    progress: ProgressCallback = silent
    stop_requested: Callable[[], bool] = never
    """Called after every step; True = write a checkpoint and end."""
    command: str = "disp_llm"
    """How the task was started, for provenance."""
    asked: Config | None = None
    """Settings as given, which the run folder stores; the models may not be able to follow all of
    them."""
    began: float = field(default_factory=time.perf_counter)
    is_trial: bool = False
    """Whether its steps are only timed and thrown away: no checkpoint, no tracker."""

    def count(self, stage: str) -> Ticks:
        """Returns the progress callback of one stage."""
        return counting(self.progress, stage)
