"""The mask-learning loop: frozen model, text and a start -> the logits of every site.

Every step draws its windows, its noise and, for several sizes, its keep from a generator seeded
with (seed, step, process), as `loop` wants it.

N entries of all sites.
"""

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from disp_llm.budget import Budget, project
from disp_llm.config import LearnConfig
from disp_llm.estimators import ESTIMATORS
from disp_llm.families import Family
from disp_llm.hypernet import build
from disp_llm.loop import Pace, generator_of, train
from disp_llm.losses import Teacher, head_of, token_losses
from disp_llm.masks import Choice, Masking, blocks_of, masked
from disp_llm.mixture import Mixture
from disp_llm.text import Corpus

SMALL_FIRST = 1.5
"""Exponent of the uniform number that draws a keep: small sizes, which are harder, come more often.
"""

WORTH_COMPILING = 60
"""Steps; below, compiling takes longer than it saves."""

BASELINE_MEMORY = 0.9
"""Of the moving average that the policy gradient compares a loss with."""


@dataclass(frozen=True)
class Task:
    """What is learned on what, and under which budget."""

    model: PreTrainedModel
    family: Family
    corpus: Corpus
    """Learning tokens."""
    budget: Budget
    keeps: tuple[float, ...]
    """One keep is held at every step; of several, every step draws one between their extremes."""
    align: int
    seed: int

    def keep_at(self, noise: torch.Generator) -> float:
        low, high = min(self.keeps), max(self.keeps)
        return low + (high - low) * float(torch.rand((), generator=noise)) ** SMALL_FIRST


def learn(
    task: Task,
    start: Float[Tensor, " N"],
    config: LearnConfig,
    folder: Path,
    accelerator,
    on_step: Callable[[dict], None] = lambda metrics: None,
) -> Choice:
    """Trains logits from `start`, and a scale for every entry from 1; goes on from a checkpoint in
    `folder`.

    Raises:
        InputError: the text is shorter than a window, or a checkpoint is damaged.
        Interrupted: a signal ended it after a step; the checkpoint holds that step.
    """
    task.corpus.require_length(config.length, "--length")
    trained = build(
        config.parametrisation,
        start.float(),
        task.budget.layout,
        generator_of(task.seed, 1),
        config.constrained,
    )
    trained.register_buffer("baseline", torch.tensor(math.nan, device=start.device))
    optimizer = _optimizer(trained, start, config)
    head = head_of(task.model, task.family)
    mixture = Mixture(task.corpus).to(start.device)
    trained.add_module("mixture", mixture)
    with torch.no_grad():
        mixture.measure_reference(
            lambda tokens: token_losses(task.model, head, tokens.to(start.device)),
            config.length,
            generator_of(task.seed, 4),
        )
    per_step = config.length * config.batch * config.accumulate
    pace = Pace(config.steps, config.schedule, config.checkpoint_every, per_step)
    compiling = compiles(config, start.device)
    with (
        masked(task.model, task.family, task.budget.layout) as masking,
        compiled_blocks(task.model, task.family, compiling),
        checkpointed_blocks(task.model, task.family, config.gradient_checkpointing),
    ):
        teacher = None
        if config.distill:
            teacher = Teacher(task.model, head, config.distill, masking.lifted)

        def loss_of(tokens: Tensor) -> Tensor:
            return token_losses(task.model, head, tokens, teacher, compiling)

        def backward(step: int) -> dict[str, Any]:
            return _backward(task, trained, masking, loss_of, config, step, accelerator)

        train(trained, optimizer, backward, pace, folder, accelerator, on_step)
    with torch.no_grad():
        fixed = task.budget.fixed.to(start.device)
        scales = scales_of(trained, fixed) if config.learns_scales else None
        return Choice(trained().clone(), scales)


def _optimizer(
    trained: nn.Module, start: Float[Tensor, " N"], config: LearnConfig
) -> torch.optim.Optimizer:
    """Of logits and, where they are learned, of scales, which `trained` gets here."""
    groups: list[dict[str, Any]] = [{"params": list(trained.parameters())}]
    if config.learns_scales:
        scales = nn.Parameter(torch.ones_like(start, dtype=torch.float32))
        trained.register_parameter("scales", scales)
        groups.append({"params": [scales], "lr": config.scale_rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        foreach=True,
    )


def scales_of(trained: nn.Module, fixed: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What entries are multiplied by: those of sites that stay whole by 1, so that nothing outside
    the chosen sites changes."""
    return trained.get_parameter("scales").masked_fill(fixed, 1.0)


def _backward(
    task: Task,
    trained: nn.Module,
    masking: Masking,
    loss_of: Callable[[Tensor], Tensor],
    config: LearnConfig,
    step: int,
    accelerator,
) -> dict[str, Any]:
    """Accumulates the gradient of one step: cross-entropy + λ·|log(T(s)/(keep·T))|."""
    shared = generator_of(task.seed, 2, step)
    keep = task.keep_at(shared)
    own = generator_of(task.seed, 3, step, accelerator.process_index)
    estimate = ESTIMATORS[config.estimator]
    projection = functools.partial(project, budget=task.budget, share=keep, align=task.align)
    device = next(task.model.parameters()).device
    mixture = trained.get_submodule("mixture")
    assert isinstance(mixture, Mixture)
    mixture.update(step)
    fixed = task.budget.fixed.to(device)
    mean_loss, mean_share = 0.0, 0.0
    for _ in range(config.accumulate):
        sample = estimate(trained(), projection, own, config.shift, config.temperature)
        sample = sample.with_ones(fixed)
        masking.set(
            sample.mask * scales_of(trained, fixed) if config.learns_scales else sample.mask
        )
        tokens, sources = mixture.draw(config.batch, config.length, own)
        with torch.set_grad_enabled(sample.log_probability is None):
            losses = loss_of(tokens.to(device)).mean(-1)  # (B)
        mixture.saw(sources, losses, accelerator)
        loss = losses.mean()
        share = task.budget.share(task.budget.layout.counts(sample.counted))
        total = loss
        if config.penalty:
            total = total + config.penalty * (share / keep).log().abs()
        if sample.log_probability is not None:
            total = _against_baseline(total, trained, accelerator) * sample.log_probability
        (total / config.accumulate).backward()
        mean_loss += float(loss.detach()) / config.accumulate
        mean_share += float(share.detach()) / config.accumulate
    return {"loss": mean_loss, "keep": mean_share, "keep_asked": keep} | mixture.figures()


def _against_baseline(reward: Tensor, trained: nn.Module, accelerator) -> Tensor:
    """The reward less its moving average over the steps before, which is updated; no gradient.

    The average, over all processes, is a buffer of what is trained, so that a checkpoint holds it
    (NaN before the first).
    """
    reward = reward.detach()
    baseline = trained.get_buffer("baseline")
    mean = accelerator.reduce(reward.clone(), reduction="mean")
    before = baseline.nan_to_num(float(mean))
    baseline.copy_(BASELINE_MEMORY * before + (1 - BASELINE_MEMORY) * mean)
    return reward - before


@contextmanager
def compiled_blocks(model: PreTrainedModel, family: Family, active: bool) -> Iterator[None]:
    """While the context lasts, blocks run through torch.compile; blocks of one shape share the
    result. What cannot be compiled runs as it is."""
    blocks = blocks_of(model, family) if active else []
    with torch._dynamo.config.patch(suppress_errors=True, cache_size_limit=8 + 2 * len(blocks)):
        for block in blocks:
            block.forward = torch.compile(block.forward)
        try:
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)


def compiles(config: LearnConfig, device: torch.device) -> bool:
    """Whether blocks run through torch.compile: as asked, or where it is worth it."""
    if config.compile == "auto":
        return worth_compiling(config.steps, device)
    return config.compile == "yes"


def worth_compiling(steps: int, device: torch.device) -> bool:
    """Whether that many steps win back the seconds that compiling takes, where it can be done."""
    tool = "gcc" if device.type == "cuda" else os.environ.get("CXX", "g++")
    return steps >= WORTH_COMPILING and shutil.which(tool) is not None


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
            block.__dict__.pop("forward", None)
