"""Windows of tokens that a model reads at once, and which of their tokens a loss counts.

B windows, T tokens of a window, N tokens of an example, D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

StatesLoss = Callable[[Float[Tensor, "N D"]], Tensor]
"""What a model loses on an example, from the final hidden states of its tokens in float32: the mean
over what is chosen there, a scalar that has a gradient."""


@dataclass(frozen=True)
class TaskPart:
    """An example in a window that has a loss of its own, in place of that of next tokens."""

    first: int
    """Of its tokens in the window."""
    end: int
    loss: StatesLoss
    choices: int
    """How many the loss is the mean of."""


@dataclass(frozen=True)
class Windows:
    """Of running text, in which every token but the first of a window counts; or of examples, in
    which answers count and prompts do not, or which have a loss of their own."""

    tokens: Int[Tensor, "B T"]
    counted: Bool[Tensor, "B T"] | None = None
    """Which tokens count; None = all. The first of a window, which nothing predicts, never does."""
    places: Int[Tensor, "B T"] | None = None
    """The place of every token in its own example, from 0; None = windows hold one text each."""
    tasks: tuple[tuple[TaskPart, ...], ...] = ()
    """Of every window, its examples with a loss of their own, none where tokens count; () = there
    are none in any window."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> "Windows":
        """Some of the windows, in the order that is asked for."""
        numbers = torch.arange(len(self) if self.tasks else 0)
        if self.tasks:
            numbers = numbers[rows.cpu() if isinstance(rows, Tensor) else rows]
        return Windows(
            self.tokens[rows],
            None if self.counted is None else self.counted[rows],
            None if self.places is None else self.places[rows],
            tuple(self.tasks[number] for number in numbers.tolist()),
        )

    def one(self, row: int) -> "Windows":
        """A single window as a batch of one."""
        return self[slice(row, row + 1)]

    def to(self, device: torch.device) -> "Windows":
        """On a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            counted=None if self.counted is None else self.counted.to(device),
            places=None if self.places is None else self.places.to(device),
        )

    def tensor_split(self, parts: int) -> list["Windows"]:
        """As `torch.tensor_split`."""
        bounds = torch.arange(len(self)).tensor_split(parts)
        return [self[rows] for rows in bounds]

    @property
    def of_first_example(self) -> "Windows":
        """The same, in which only the first example of each window counts: for a model that cannot
        keep examples apart, whose later ones would be read after strangers."""
        if self.places is None:
            return self
        steps = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        assert self.counted is not None
        first = tuple(parts[:1] for parts in self.tasks)
        counted = self.counted & (self.places == steps)
        return Windows(self.tokens, counted, tasks=first)

    @property
    def choices(self) -> int:
        """How many tokens or, where examples have a loss of their own, choices count."""
        own = sum(part.choices for parts in self.tasks for part in parts)
        return own + int(self.predicted.sum())

    @property
    def predicted(self) -> Bool[Tensor, "B S"]:
        """Which of the S = T − 1 tokens behind the first count."""
        if self.counted is None:
            return torch.ones_like(self.tokens[:, 1:], dtype=torch.bool)
        return self.counted[:, 1:]

    def of_predicted(self, values: Tensor) -> Tensor:
        """Those of the S tokens that count, one window's behind the other's: (B, S, …) -> (P, …).
        All of running text are taken without looking which, which a GPU would wait for."""
        return values.flatten(0, 1) if self.counted is None else values[self.predicted]

    def means(self, losses: Float[Tensor, " P"]) -> Float[Tensor, " B"]:
        """The mean loss of every window, from those of its counted tokens, one window's behind the
        other's."""
        if self.counted is None:
            return losses.view(len(self), -1).mean(-1)
        counts = self.predicted.sum(1)
        sums = torch.stack([part.sum() for part in losses.split(counts.tolist())])
        return sums / counts


def joined(parts: list[Windows]) -> Windows:
    """Windows of the same length, one after the other; where some are of examples, all of the
    tokens of the others count, and their places are those in the window."""
    tokens = torch.cat([part.tokens for part in parts])
    if all(part.counted is None for part in parts):
        return Windows(tokens)
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    counted = [
        torch.ones_like(part.tokens, dtype=torch.bool) if part.counted is None else part.counted
        for part in parts
    ]
    places = [
        steps.expand_as(part.tokens) if part.places is None else part.places for part in parts
    ]
    tasks = tuple(one for part in parts for one in part.tasks or ((),) * len(part))
    return Windows(tokens, torch.cat(counted), torch.cat(places), tasks if any(tasks) else ())


def random_windows(
    stream: Int[Tensor, " N"],
    count: int,
    length: int,
    generator: torch.Generator,
    bos_token_id: int | None = None,
) -> Int[Tensor, "B T"]:
    """Windows at uniformly drawn places of a text."""
    starts = torch.randint(len(stream) - length + 1, (count,), generator=generator)
    windows = torch.stack([stream[start : start + length] for start in starts.tolist()])
    return with_bos(windows, bos_token_id)


def usual_bos(tokenizer: Any) -> int | None:
    """The BOS token that a tokenizer puts before every text, if it puts any."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def with_bos(windows: Int[Tensor, "B T"], bos_token_id: int | None) -> Int[Tensor, "B T"]:
    """Windows with that token in place of their first; as they are without one."""
    if bos_token_id is None:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], bos_token_id), windows[:, 1:]], 1)
