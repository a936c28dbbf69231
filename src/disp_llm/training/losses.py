"""Next-token cross-entropy and distillation without a `tokens × vocabulary` tensor.

The head is frozen, so its gradient towards the hidden states can be taken in the forward
pass, a chunk of tokens at a time, and kept in place of the logits: the same two matrix products as
usual, and the memory of one chunk.

B windows, T tokens of each, P positions whose tokens count, D hidden, V vocabulary.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.data.windows import Windows
from disp_llm.masks.prunable import PrunableModel

Head = Callable[[Tensor], Tensor]
"""Hidden states (..., D) -> logits (..., V)."""

CHUNK = 256
"""Tokens whose logits exist at one time."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose next-token distribution is also to be learned."""

    target: PrunableModel
    share: float
    """Share of the loss: `(1 − share)·cross-entropy + share·KL(teacher ‖ student)`."""
    teaching: Callable[[], AbstractContextManager] = nullcontext
    """Makes the model what it teaches as, while it runs: a masked model teaches without masks."""
    head: Head | None = None
    """In place of its own: `in_fewer_tokens`, where it knows more tokens than the student."""


def in_fewer_tokens(head: Head, first: Int[Tensor, " V"], tokens: int) -> Head:
    """A head whose tokens are fewer: each has the mass of all those whose spelling begins with it.
    A model that never saw a word in pieces expects none of them, but it does expect the word.

    Args:
        head: of all V tokens.
        first: the new number of the token that each begins with.
        tokens: how many there are then.
    """

    def summed(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        most = logits.amax(-1, keepdim=True)
        mass = (logits - most).exp().flatten(0, -2).T  # (V, P), whose rows are added fast
        begins = first.to(hidden.device)
        some = mass.new_zeros(tokens, mass.shape[1]).index_add_(0, begins, mass[: len(begins)])
        some = some.clamp_min(torch.finfo(some.dtype).tiny)  # a divergence has no infinite logit
        return some.log().T.view(*logits.shape[:-1], tokens) + most

    return summed


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, loss_of: Callable) -> Tensor:
        losses, gradients, learns = [], [], ctx.needs_input_grad[0]
        for first in range(0, len(hidden), CHUNK):
            place = slice(first, first + CHUNK)
            with torch.set_grad_enabled(learns):
                leaf = hidden[place].detach().requires_grad_(learns)
                logits = head(leaf)
            loss, slope = loss_of(logits.detach(), place, learns)
            losses.append(loss)
            if slope is not None:
                gradients += torch.autograd.grad(logits, leaf, slope)
        ctx.gradient = torch.cat(gradients) if gradients else None
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * grad_outputs[0].unsqueeze(-1).to(ctx.gradient.dtype), None, None


def token_losses(
    target: PrunableModel, tokens: Int[Tensor, "B T"], teacher: Teacher | None = None
) -> Float[Tensor, "B T-1"]:
    """−ln p of each token but the first of every window, in float32; with a teacher, mixed with the
    divergence from its distribution."""
    return _counted_losses(target, Windows(tokens), teacher, False).view(len(tokens), -1)


def mean_losses(
    target: PrunableModel,
    windows: Windows,
    teacher: Teacher | None = None,
    compiled: bool = False,
) -> Float[Tensor, " B"]:
    """The mean of the same over the tokens of each window that count; where its examples have
    their own loss, the mean of that, without a teacher.

    Examples in a window do not see each other where the model can be told the places of tokens;
    else the first of each window counts alone.

    Args:
        compiled: whether what follows the head runs through torch.compile, which takes fewer
            passes over the logits.
    """
    if not target.keeps_apart:
        windows = windows.of_first_example
    if not any(windows.tasks):
        windows = replace(windows, tasks=())
        return windows.means(_counted_losses(target, windows, teacher, compiled))
    own = torch.tensor([bool(parts) for parts in windows.tasks])
    rows = [own.nonzero()[:, 0], own.logical_not().nonzero()[:, 0]]
    found = [_task_losses(target, windows[rows[0]])]
    if len(rows[1]):
        others = replace(windows[rows[1]], tasks=())
        found.append(others.means(_counted_losses(target, others, teacher, compiled)))
    return torch.cat(found)[torch.cat(rows).argsort().to(found[0].device)]


def _task_losses(target: PrunableModel, windows: Windows) -> Float[Tensor, " B"]:
    """The mean own loss of all choices in each window."""
    hidden = _all_states(target, windows).float()
    means = []
    for states, parts in zip(hidden, windows.tasks, strict=True):
        losses = torch.stack([part.loss(states[part.first : part.end]) for part in parts])
        counts = losses.new_tensor([part.choices for part in parts])
        means.append((losses * counts).sum() / counts.sum())
    return torch.stack(means)


def _counted_losses(
    target: PrunableModel, windows: Windows, teacher: Teacher | None, compiled: bool
) -> Float[Tensor, " P"]:
    """One window's tokens that count behind the other's."""
    taught = None
    if teacher is not None:
        with teacher.teaching(), torch.no_grad():  # masks are set again with their gradient
            taught = _states(teacher.target, windows)
    states = _states(target, windows)
    targets = windows.of_predicted(windows.tokens[:, 1:])
    of_chunk = _compiled() if compiled else _loss_and_slope

    def loss_of(logits: Tensor, place: slice, learns: bool) -> tuple[Tensor, Tensor | None]:
        lesson = None
        if teacher is not None and taught is not None:
            lesson = ((teacher.head or teacher.target.head)(taught[place]), teacher.share)
        return of_chunk(logits, targets[place], lesson, learns)

    return _ChunkedLoss.apply(states, target.head, loss_of)


Lesson = tuple[Tensor, float]
"""The teacher's logits, and its share of the loss."""


def _loss_and_slope(
    logits: Tensor, targets: Tensor, lesson: Lesson | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each of some positions and, where something learns, its gradient by the logits:
    the probabilities that a student gives, less those that it should give.

    Autograd would take twice as many passes over the logits, and keep more of them.
    """
    given = logits.log_softmax(-1)
    loss = nn.functional.nll_loss(given, targets, reduction="none")
    likely, share = None, 0.0
    if lesson is not None:
        taught, share = lesson
        wanted = taught.log_softmax(-1)
        likely = wanted.exp()
        divergence = wanted.sub_(given).mul_(likely).sum(-1)
        loss = (1 - share) * loss + share * divergence
    if not learns:
        return loss, None
    slope = given.exp_()
    if likely is not None:
        slope.sub_(likely, alpha=share)
    certain = slope.new_full((len(targets), 1), share - 1)
    return loss, slope.scatter_add_(-1, targets[:, None], certain)


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_loss_and_slope)


def _states(target: PrunableModel, windows: Windows) -> Float[Tensor, "P D"]:
    """Final hidden states of the positions that predict a token that counts, one window's behind
    the other's; of running text there are B·(T − 1)."""
    return windows.of_predicted(_all_states(target, windows)[:, :-1])


def _all_states(target: PrunableModel, windows: Windows) -> Float[Tensor, "B T D"]:
    places = {}
    if windows.places is not None and target.keeps_apart:
        places = {"position_ids": windows.places}
    return target.base(input_ids=windows.tokens, use_cache=False, **places).last_hidden_state
