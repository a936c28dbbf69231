"""Next-token cross-entropy and distillation without a `tokens × vocabulary` tensor.

The head is frozen, so the forward pass can compute the gradient with respect to the hidden states,
one chunk of tokens at a time, and keep it instead of the logits. This takes the usual two matrix
products and the memory of one chunk.

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
"""Tokens whose logits exist at the same time."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose next-token distribution the student also learns."""

    target: PrunableModel
    share: float
    """Weight in the loss: `(1 − share)·cross-entropy + share·KL(teacher ‖ student)`."""
    teaching: Callable[[], AbstractContextManager] = nullcontext
    """Context in which the model runs as the teacher: a masked model teaches without masks."""
    head: Head | None = None
    """Replaces the model's head: `in_fewer_tokens` if it has more tokens than the student."""


def in_fewer_tokens(head: Head, first: Int[Tensor, " V"], tokens: int) -> Head:
    """Returns a head over fewer tokens: each gets the mass of all old tokens whose spelling begins
    with it. A model that never saw a word split expects the word, not its pieces.

    Args:
        first: new index of the token that each old token begins with.
    """

    def summed(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        most = logits.amax(-1, keepdim=True)
        mass = (logits - most).exp().flatten(0, -2).T  # (V, P): adding rows is fast
        begins = first.to(hidden.device)
        some = mass.new_zeros(tokens, mass.shape[1]).index_add_(0, begins, mass[: len(begins)])
        some = some.clamp_min(torch.finfo(some.dtype).tiny)  # finite logits, for the divergence
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
    """Returns −ln p of each token but the first of every window, in float32; with a teacher, mixed
    with the divergence from its distribution."""
    return _counted_losses(target, Windows(tokens), teacher, False).view(len(tokens), -1)


def mean_losses(
    target: PrunableModel,
    windows: Windows,
    teacher: Teacher | None = None,
    compiled: bool = False,
) -> Float[Tensor, " B"]:
    """Returns the mean of `token_losses` over each window's counted tokens; if its examples have
    their own loss, the mean of that, without the teacher.

    Examples in a window do not see each other if `target.keeps_apart`; otherwise only the first
    example of each window counts.

    Args:
        compiled: whether the computation after the head runs through torch.compile, which needs
            fewer passes over the logits.
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
    """Returns each window's mean own loss over all its choices."""
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
    """Returns the losses of all counted tokens, window after window."""
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
"""The teacher's logits and its share of the loss."""


def _loss_and_slope(
    logits: Tensor, targets: Tensor, lesson: Lesson | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss of each position and, if something learns, its gradient with respect to the
    logits: the student's probabilities minus the target ones.

    Autograd would need twice as many passes over the logits, and keep more of them.
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
    """Returns the final hidden states of all positions that predict a counted token, window after
    window; B·(T − 1) of them for running text."""
    return windows.of_predicted(_all_states(target, windows)[:, :-1])


def _all_states(target: PrunableModel, windows: Windows) -> Float[Tensor, "B T D"]:
    places = {}
    if windows.places is not None and target.keeps_apart:
        places = {"position_ids": windows.places}
    return target.base(input_ids=windows.tokens, use_cache=False, **places).last_hidden_state
