"""The mask-learning loop: frozen model, text and a start -> the logits of every site.

Every step draws its windows, its noise and, for several sizes, its keep from a generator seeded
with (seed, step, process), so that a resumed run repeats an uninterrupted one bit for bit and a
checkpoint needs no generator state. Processes read different text and exchange one vector a step:
the gradient of what is trained, with the loss and a wish to stop behind it.

N entries of all sites.
"""

import functools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from disp_llm.budget import Budget, project
from disp_llm.config import InputError, LearnConfig
from disp_llm.estimators import ESTIMATORS
from disp_llm.families import Family
from disp_llm.files import write_tensors
from disp_llm.hypernet import build
from disp_llm.losses import head_of, token_losses
from disp_llm.masks import Masking, blocks_of, masked
from disp_llm.text import random_windows, require_length

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
BASELINE_MEMORY = 0.9
"""Of the moving average that the policy gradient compares a loss with."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; a checkpoint has been written."""


@dataclass(frozen=True)
class Task:
    """What is learned on what, and under which budget."""

    model: PreTrainedModel
    family: Family
    stream: Tensor
    """Learning tokens, (tokens)."""
    budget: Budget
    keeps: tuple[float, ...]
    """One keep is held at every step; of several, every step draws one between their extremes."""
    align: int
    seed: int

    def keep_at(self, noise: torch.Generator) -> float:
        low, high = min(self.keeps), max(self.keeps)
        return low + (high - low) * float(torch.rand((), generator=noise))


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose stream depends on all of the numbers (their order counts)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)


def learn(
    task: Task,
    start: Float[Tensor, " N"],
    config: LearnConfig,
    folder: Path,
    accelerator,
    on_step: Callable[[dict], None] = lambda metrics: None,
) -> Float[Tensor, " N"]:
    """Trains logits from `start` and returns them; goes on from a checkpoint in `folder`.

    Raises:
        InputError: the text is shorter than a window, or a checkpoint is damaged.
        Interrupted: a signal ended it after a step; the checkpoint holds that step.
    """
    require_length(task.stream, config.length, "--length")
    trained = build(
        config.parametrisation,
        start.float(),
        task.budget.layout,
        generator_of(task.seed, 1),
        config.constrained,
    )
    trained.register_buffer("baseline", torch.tensor(math.nan, device=start.device))
    optimizer = torch.optim.AdamW(
        trained.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        foreach=True,
    )
    first = restore(folder, trained, optimizer)
    head = head_of(task.model, task.family)
    began = time.perf_counter()
    with (
        masked(task.model, task.family, task.budget.layout) as masking,
        checkpointed_blocks(task.model, task.family, config.gradient_checkpointing),
        stop_signals() as stop,
    ):
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(step, config)
            metrics = _backward(task, trained, masking, head, config, step, accelerator)
            stopping = _exchange(trained, metrics, bool(stop), accelerator)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            per_step = config.length * config.batch * config.accumulate * accelerator.num_processes
            speed = per_step * (done - first) / (time.perf_counter() - began)
            rate = optimizer.param_groups[0]["lr"]
            counts = {"step": done, "tokens": per_step * done}
            on_step(metrics | counts | {"learning_rate": rate, "tokens_per_s": speed})
            if accelerator.is_main_process and (
                stopping or done % config.checkpoint_every == 0 or done == config.steps
            ):
                save(folder, done, trained, optimizer)
            if stopping and done < config.steps:
                raise Interrupted
    with torch.no_grad():
        return trained().detach().clone()


def _backward(
    task: Task,
    trained: nn.Module,
    masking: Masking,
    head: Callable,
    config: LearnConfig,
    step: int,
    accelerator,
) -> dict[str, float]:
    """Accumulates the gradient of one step: cross-entropy + λ·|log(T(s)/(keep·T))|."""
    shared = generator_of(task.seed, 2, step)
    keep = task.keep_at(shared)
    own = generator_of(task.seed, 3, step, accelerator.process_index)
    estimate = ESTIMATORS[config.estimator]
    projection = functools.partial(project, budget=task.budget, share=keep, align=task.align)
    device = next(task.model.parameters()).device
    mean_loss, mean_share = 0.0, 0.0
    for _ in range(config.accumulate):
        sample = estimate(trained(), projection, own, config.shift, config.temperature)
        sample = sample.with_ones(task.budget.fixed.to(device))
        masking.set(sample.mask)
        tokens = random_windows(task.stream, config.batch, config.length, own).to(device)
        with torch.set_grad_enabled(sample.log_probability is None):
            loss = token_losses(task.model, head, tokens).mean()
        share = task.budget.share(task.budget.layout.counts(sample.counted))
        total = loss
        if config.penalty:
            total = total + config.penalty * (share / keep).log().abs()
        if sample.log_probability is not None:
            total = _against_baseline(total, trained) * sample.log_probability
        (total / config.accumulate).backward()
        mean_loss += float(loss.detach()) / config.accumulate
        mean_share += float(share.detach()) / config.accumulate
    return {"loss": mean_loss, "keep": mean_share, "keep_asked": keep}


def _against_baseline(reward: Tensor, trained: nn.Module) -> Tensor:
    """The reward less its moving average over the steps before, which is updated; no gradient.

    The average is a buffer of what is trained, so that a checkpoint holds it (NaN before the
    first).
    """
    reward = reward.detach()
    baseline = trained.get_buffer("baseline")
    before = baseline.nan_to_num(float(reward))
    baseline.copy_(BASELINE_MEMORY * before + (1 - BASELINE_MEMORY) * reward)
    return reward - before


def _exchange(trained: nn.Module, metrics: dict[str, float], stop: bool, accelerator) -> bool:
    """Averages gradient and loss over processes in one all-reduce; whether any wants to stop."""
    if accelerator.num_processes == 1:
        return stop
    parameters = list(trained.parameters())
    extra = torch.tensor([metrics["loss"], float(stop)], device=parameters[0].device)
    flat = torch.cat([_gradient(p).flatten() for p in parameters] + [extra])
    flat = accelerator.reduce(flat, reduction="mean")
    *parts, loss, any_stop = flat.split([p.numel() for p in parameters] + [1, 1])
    for parameter, part in zip(parameters, parts, strict=True):
        _gradient(parameter).copy_(part.view_as(parameter))
    metrics["loss"] = float(loss)
    return bool(any_stop > 0)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a trained parameter took no part in the step"
    return parameter.grad


def _rate(step: int, config: LearnConfig) -> float:
    """Share of the peak step size: constant, or a cosine from 1 to a tenth."""
    if config.schedule == "constant":
        return 1.0
    return 0.1 + 0.45 * (1 + math.cos(math.pi * step / config.steps))


@contextmanager
def checkpointed_blocks(model: PreTrainedModel, family: Family, active: bool) -> Iterator[None]:
    """While the context lasts, blocks keep their inputs only and run again in the backward pass.

    transformers' own switch needs training mode, which would bring dropout with it.
    """
    blocks = blocks_of(model, family) if active else []
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


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
    tensors = {f"trained.{name}": value for name, value in trained.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(_path(folder, step), tensors, {"step": str(step)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


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
        trained.load_state_dict(own)
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
