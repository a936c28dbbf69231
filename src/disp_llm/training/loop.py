"""The training loop for any trained module: learning rates, processes, checkpoints, early stop.

If a step draws everything from generators seeded with (seed, step, process), a resumed run repeats
an uninterrupted one, on a CPU bit for bit, and checkpoints need no generator state. Processes read
different text and exchange gradients, the loss and a wish to stop; FSDP2 exchanges the gradients of
sharded weights.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from disp_llm.config.errors import InputError
from disp_llm.config.learning import TrainingConfig
from disp_llm.runs.job import Interrupted, Job, Process
from disp_llm.runs.metrics import MetricsLog
from disp_llm.training.checkpoints import restore, save, unsharded, whole_tensors

CHECKPOINT_EVERY = 25
"""Steps between checkpoints; SIGINT and SIGTERM write one as well."""
RARER = 4
"""Factor by which checkpoints are rarer if they hold all weights and moments."""

Figures = dict[str, Any]

Loss = tuple[Tensor, dict[str, Tensor]]
"""The loss that a step differentiates, and the figures reported for it, including `loss`."""


@dataclass(frozen=True)
class Schedule:
    """Number of steps, and the learning rate of each."""

    config: TrainingConfig
    steps: int
    stage: str
    """Name of the training in progress reports."""
    rarer: int = 1
    """Factor on `CHECKPOINT_EVERY` for large checkpoints."""
    clip: float = 0.0
    """Largest gradient norm; 0 = no limit."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate grows to its peak."""

    def rate_of(self, group: dict[str, Any], step: int) -> float:
        """Returns a parameter group's share of its peak learning rate. A group may set `growing`: a
        share of the steps over which its own rate also grows."""
        growing = round(group.get("growing", 0.0) * self.steps)
        return self.rate(step) * min((step + 1) / max(growing, 1), 1.0)

    def rate(self, step: int) -> float:
        """Returns the share of the peak learning rate: a warm-up, then constant, a cosine from 1 to
        a tenth, or a line from 1 that would reach 0 one step after the last."""
        warmup = round(self.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.config.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(self.steps - warmup, 1)
        if self.config.schedule == "linear":
            return 1.0 - done
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    def saves(self, done: int) -> bool:
        """Returns whether to write a checkpoint after `done` steps."""
        return done % (self.rarer * CHECKPOINT_EVERY) == 0 or done == self.steps


def optimizers_of(
    config: TrainingConfig,
    groups: list[dict[str, Any]],
    weights: dict[str, Any],
    foreach: bool | None = None,
) -> list[Optimizer]:
    """Builds AdamW for `groups`, and AdamW or Muon for `weights`, a group of matrices or none."""
    muon = config.weight_optimizer == "muon" and bool(weights["params"])
    adamw = torch.optim.AdamW(
        groups if muon else [*groups, weights],
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        foreach=foreach,
    )
    if not muon:
        return [adamw]
    weights = {"lr": config.learning_rate, "weight_decay": config.weight_decay} | weights
    return [adamw, torch.optim.Muon([weights], adjust_lr_fn="match_rms_adamw")]


def train(
    trained: nn.Module,
    optimizers: Sequence[Optimizer],
    loss_of: Callable[[int], Loss],
    schedule: Schedule,
    job: Job,
) -> None:
    """Runs the steps left after the newest checkpoint of the job's run.

    Args:
        trained: its parameters that require a gradient are trained and saved.
        optimizers: the learning rate of each of their groups is the peak.
        loss_of: returns the loss of a step.

    Raises:
        Interrupted: the job was asked to stop; unless it is a trial, a checkpoint was written.
        InputError: a loss is not finite, or the checkpoint belongs to a different run.
    """
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    facts = restore(job.run.checkpoint_folder, trained, optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    first, is_main = _first_step(facts, job), job.process.is_main
    tokens = schedule.config.tokens_per_step * job.process.count
    before = (job.run.metrics_file, first, facts.get("metrics"))
    with MetricsLog(*before) if is_main else nullcontext() as log:
        began = time.perf_counter()
        for step in range(first, schedule.steps):
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * schedule.rate_of(group, step)
            figures = _differentiate(*loss_of(step))
            stopping = _exchange(parameters, figures, job.stop_requested(), job.process)
            _require_finite(figures["loss"], step)
            if schedule.clip:
                figures["gradient_norm"] = _clip(parameters, schedule.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done = step + 1
            if log is not None:
                pace = (done - first) / (time.perf_counter() - began)
                rates = {"learning_rate": groups[0]["lr"], "tokens_per_s": tokens * pace}
                figures |= rates | {"step": done, "tokens": tokens * done}
                _report(figures, schedule, job, log)
            if (stopping or schedule.saves(done)) and not job.is_trial:
                tensors = whole_tensors(trained, optimizers, is_main)
                if log is not None:
                    facts = {"step": str(done), "metrics": log.settle(), "run": job.run.identity}
                    save(job.run.checkpoint_folder, facts, tensors)
            if stopping:
                raise Interrupted


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"step {step + 1} has a loss of {loss}",
            field="learning_rate",
            hint="lower it, or try the `dtype` float32",
        )


def _differentiate(loss: Tensor, figures: dict[str, Tensor]) -> Figures:
    """Back-propagates; returns the figures as numbers. On return, the loss's graph is free."""
    loss.backward()
    return {name: value.item() for name, value in figures.items()}


def _first_step(facts: dict[str, str], job: Job) -> int:
    """Returns the step to go on from, 0 without a checkpoint; refuses one of another run."""
    if facts and facts.get("run") != job.run.identity and not job.run.anyway:
        raise InputError(
            "is of other settings, another model or other text",
            field=str(job.run.checkpoint_folder),
            hint="bring back what it was, or delete it to learn from the beginning",
        )
    return int(facts.get("step", 0))


def _report(figures: Figures, schedule: Schedule, job: Job, log: MetricsLog) -> None:
    """Sends a step's figures to the log, the trackers (not in a trial) and the progress."""
    log.append(figures)
    if not job.is_trial:
        job.process.track("train", figures, figures["step"])
    job.progress(schedule.stage, figures["step"], schedule.steps, figures)


def _exchange(
    parameters: list[nn.Parameter], figures: Figures, stop: bool, process: Process
) -> bool:
    """Averages gradients and loss over processes; returns whether any process wants to stop."""
    if process.count == 1:
        return stop
    for parameter in parameters:
        gradient = _gradient(parameter)
        if not isinstance(gradient, DTensor):
            gradient.copy_(process.mean(gradient))
    exchanged = torch.tensor([figures["loss"], float(stop)], device=parameters[0].device)
    loss, any_stop = process.mean(exchanged)
    figures["loss"] = float(loss)
    return bool(any_stop > 0)


def _clip(parameters: list[nn.Parameter], longest: float) -> float:
    """Clips the gradient to `longest`; returns its norm before that. Sharded and whole tensors
    cannot share a list, so they are handled apart."""
    divided = [one for one in parameters if isinstance(one, DTensor)]
    whole = [one for one in parameters if not isinstance(one, DTensor)]
    parts = [part for part in (divided, whole) if part]
    found = [nn.utils.get_total_norm([_gradient(one) for one in part]) for part in parts]
    norms = list(map(unsharded, found))
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for part in parts:
        nn.utils.clip_grads_with_norm_(part, longest, norm)
    return float(norm)


def _gradient(parameter: Tensor) -> Tensor:
    """Returns the gradient; zeros if the step did not use the parameter (an unchosen expert)."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
