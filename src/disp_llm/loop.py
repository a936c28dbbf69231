"""Steps of training, whatever is trained: step size, processes, checkpoints and signals.

A step that draws what it needs from generators seeded with (seed, step, process) makes a resumed
run repeat an uninterrupted one bit for bit, and a checkpoint needs no generator state. Processes
read different text and exchange one vector a step: the gradient of what is trained, with the loss
and a wish to stop behind it.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from disp_llm.config import InputError, Schedule
from disp_llm.files import write_tensors

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; a checkpoint has been written."""


@dataclass(frozen=True)
class Pace:
    """How long, how fast, how often saved."""

    steps: int
    schedule: Schedule
    checkpoint_every: int
    tokens: int
    """Of a step and process."""
    warmup: int = 0
    """Steps in which the step size grows to its peak."""
    clip: float = 0.0
    """Largest norm of the gradient of all processes; 0 = any."""

    def rate(self, step: int) -> float:
        """Share of the peak step size: constant, or a cosine from 1 to a tenth."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose stream depends on all of the numbers (their order counts)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)


def train(
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[int], dict[str, Any]],
    pace: Pace,
    folder: Path,
    accelerator,
    on_step: Callable[[dict], None] = lambda metrics: None,
) -> None:
    """Runs the steps that are left after the newest checkpoint in `folder`.

    Args:
        trained: its parameters that require a gradient are trained and saved.
        optimizer: the step size of each of its groups is the peak.
        backward: accumulates the gradient of a step and returns its figures, `loss` among them.

    Raises:
        InputError: a checkpoint is damaged, or a loss is not finite.
        Interrupted: a signal ended it after a step; the checkpoint holds that step.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = restore(folder, trained, optimizer)
    began = time.perf_counter()
    with stop_signals() as stop:
        for step in range(first, pace.steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * pace.rate(step)
            metrics = backward(step)
            stopping = _exchange(trained, metrics, bool(stop), accelerator)
            if not math.isfinite(metrics["loss"]):
                raise InputError(
                    f"step {step + 1} has a loss of {metrics['loss']}",
                    flag="--learning-rate",
                    mend="lower it, or try --dtype float32",
                )
            if pace.clip:
                norm = nn.utils.clip_grad_norm_(_trained(trained), pace.clip)
                metrics["gradient_norm"] = float(norm)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            tokens = pace.tokens * accelerator.num_processes
            speed = tokens * (done - first) / (time.perf_counter() - began)
            rate = optimizer.param_groups[0]["lr"]
            counts = {"step": done, "tokens": tokens * done}
            on_step(metrics | counts | {"learning_rate": rate, "tokens_per_s": speed})
            if accelerator.is_main_process and (
                stopping or done % pace.checkpoint_every == 0 or done == pace.steps
            ):
                save(folder, done, trained, optimizer)
            if stopping:
                raise Interrupted


def _trained(trained: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in trained.parameters() if parameter.requires_grad]


def _exchange(trained: nn.Module, metrics: dict[str, Any], stop: bool, accelerator) -> bool:
    """Averages gradients and loss over processes; whether any wants to stop."""
    if accelerator.num_processes == 1:
        return stop
    parameters = _trained(trained)
    for parameter in parameters:
        gradient = _gradient(parameter)
        gradient.copy_(accelerator.reduce(gradient, reduction="mean"))
    told = torch.tensor([metrics["loss"], float(stop)], device=parameters[0].device)
    loss, any_stop = accelerator.reduce(told, reduction="mean")
    metrics["loss"] = float(loss)
    return bool(any_stop > 0)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a trained parameter took no part in the step"
    return parameter.grad


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While the context lasts, SIGINT and SIGTERM are collected; a second interrupts at once."""
    received: list[int] = []

    def handle(number: int, frame) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("stopping after this step; a checkpoint will be written")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def save(folder: Path, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint and drops all but the newest two."""
    tensors = {f"trained.{name}": value for name, value in _state(trained).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(_path(folder, step), tensors, {"step": str(step)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _state(trained: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: all but frozen parameters, which are read where they came from."""
    named = trained.named_parameters(remove_duplicate=False)  # a tied head has two names
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: value for name, value in trained.state_dict().items() if name not in frozen}


def restore(folder: Path, trained: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest checkpoint, if there is one, and returns the step to go on with.

    Raises:
        InputError: it is damaged or belongs to another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return 0
    path = found[-1]
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
        own = {
            k.removeprefix("trained."): v for k, v in tensors.items() if k.startswith("trained.")
        }
        if own.keys() != _state(trained).keys():
            raise KeyError("other tensors than those that are trained")
        trained.load_state_dict(own, strict=False)
        template = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(template | {"state": state})
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"damaged or of another configuration ({str(error).splitlines()[0]})",
            flag=str(path),
            mend="delete this file to go on from the checkpoint before it",
        ) from error
    return step


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"
