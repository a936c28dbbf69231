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
    def forward(ctx, hidden: Tensor, loss_of: Callable) -> Tensor:
        losses, gradients = [], []
        for first in range(0, len(hidden), CHUNK):
            place = slice(first, first + CHUNK)
            with torch.enable_grad():
                leaf = hidden[place].detach().requires_grad_(ctx.needs_input_grad[0])
                loss = loss_of(leaf, place)
                if ctx.needs_input_grad[0]:
                    gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
            losses.append(loss.detach())
        ctx.gradient = torch.cat(gradients) if gradients else None
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient * grad_outputs[0].unsqueeze(-1).to(ctx.gradient.dtype), None


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
        compiled: whether what follows the blocks runs through torch.compile, which turns some ten
            passes over the logits into two.
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
    of_chunk = _compiled() if compiled else _loss_of_chunk

    def loss_of(hidden: Tensor, place: slice) -> Tensor:
        if teacher is None or taught is None:
            return of_chunk(hidden, targets[place], target.head)
        lesson = (taught[place], teacher.head or teacher.target.head, teacher.share)
        return of_chunk(hidden, targets[place], target.head, lesson)

    return _ChunkedLoss.apply(states, loss_of)


Lesson = tuple[Tensor, Head, float]
"""The teacher's final hidden states, its head, and its share of the loss."""


def _loss_of_chunk(
    hidden: Tensor, targets: Tensor, head: Head, lesson: Lesson | None = None
) -> Tensor:
    """The loss of each of some positions, from the student's final hidden states."""
    logits = head(hidden)
    loss = nn.functional.cross_entropy(logits, targets, reduction="none")
    if lesson is None:
        return loss
    taught, teacher_head, share = lesson
    wanted = teacher_head(taught).log_softmax(-1)
    given = logits.log_softmax(-1)
    divergence = nn.functional.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)
    return (1 - share) * loss + share * divergence


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_loss_of_chunk)


def _states(target: PrunableModel, windows: Windows) -> Float[Tensor, "P D"]:
    """Final hidden states of the positions that predict a token that counts, one window's behind
    the other's; of running text there are B·(T − 1)."""
    return windows.of_predicted(_all_states(target, windows)[:, :-1])


def _all_states(target: PrunableModel, windows: Windows) -> Float[Tensor, "B T D"]:
    places = {}
    if windows.places is not None and target.keeps_apart:
        places = {"position_ids": windows.places}
    return target.base(input_ids=windows.tokens, use_cache=False, **places).last_hidden_state
