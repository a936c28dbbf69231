"""Streams of tokens -> windows that a model reads at once, and which of their tokens count.

B windows, T tokens of a window, S = T − 1, P counted tokens of all windows, N tokens of a stream or
an example, D hidden.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.runs.job import Process

if TYPE_CHECKING:
    from disp_llm.data.example_tokens import ExampleStream

    Stream = Tensor | ExampleStream
else:
    Stream = Any  # `example_tokens` imports this module
"""The tokens of a text, (N), or tokenised examples."""

StatesLoss = Callable[[Float[Tensor, "N D"]], Tensor]
"""Loss of one example: final hidden states, float32 -> the mean over its choices, a differentiable
scalar."""


@dataclass(frozen=True)
class TaskPart:
    """An example in a window with its own loss in place of next-token prediction."""

    first: int
    """Position of its first token in the window; `end` is behind its last."""
    end: int
    loss: StatesLoss
    choices: int
    """Number of choices that `loss` averages over."""


@dataclass(frozen=True)
class Windows:
    """Windows of running text, where all tokens but the first count; or of examples, where only
    answers count, or the examples' own losses."""

    tokens: Int[Tensor, "B T"]
    counted: Bool[Tensor, "B T"] | None = None
    """Which tokens count; None = all. The first of a window never does: nothing predicts it."""
    places: Int[Tensor, "B T"] | None = None
    """Position of every token in its own example, from 0; None = each window is one text."""
    tasks: tuple[tuple[TaskPart, ...], ...] = ()
    """Each window's examples with their own loss, none if tokens count; () = no such window."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> "Windows":
        """Returns the selected windows, in the order of `rows`."""
        tasks: tuple[tuple[TaskPart, ...], ...] = ()
        if self.tasks:
            chosen = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
            tasks = tuple(self.tasks[number] for number in chosen.tolist())
        return replace(self._each(lambda tensor: tensor[rows]), tasks=tasks)

    def to(self, device: torch.device) -> "Windows":
        """Returns the windows on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Windows":
        counted, places = (t if t is None else change(t) for t in (self.counted, self.places))
        return replace(self, tokens=change(self.tokens), counted=counted, places=places)

    def tensor_split(self, parts: int) -> list["Windows"]:
        """Splits the windows as `torch.tensor_split` does."""
        bounds = torch.arange(len(self)).tensor_split(parts)
        return [self[rows] for rows in bounds]

    @property
    def of_first_example(self) -> "Windows":
        """The windows with only the first example of each counting, for a model that cannot keep
        examples apart: it would read later ones after unrelated text."""
        if self.places is None:
            return self
        steps = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        assert self.counted is not None
        first = tuple(parts[:1] for parts in self.tasks)
        counted = self.counted & (self.places == steps)
        return Windows(self.tokens, counted, tasks=first)

    @property
    def choices(self) -> int:
        """Number of counted tokens, plus choices of examples with their own loss."""
        own = sum(part.choices for parts in self.tasks for part in parts)
        return own + int(self.predicted.sum())

    @property
    def predicted(self) -> Bool[Tensor, "B S"]:
        """Which of the S tokens behind the first count."""
        if self.counted is None:
            return torch.ones_like(self.tokens[:, 1:], dtype=torch.bool)
        return self.counted[:, 1:]

    def of_predicted(self, values: Tensor) -> Tensor:
        """Selects the values of counted tokens, window by window: (B, S, …) -> (P, …). Running text
        takes all without computing indices, which a GPU would wait for."""
        return values.flatten(0, 1) if self.counted is None else values[self.predicted]

    def means(self, losses: Float[Tensor, " P"]) -> Float[Tensor, " B"]:
        """Returns each window's mean loss from those of its counted tokens, ordered by window."""
        if self.counted is None:
            return losses.view(len(self), -1).mean(-1)
        counts = self.predicted.sum(1)
        sums = torch.stack([part.sum() for part in losses.split(counts.tolist())])
        return sums / counts


def joined(parts: list[Windows]) -> Windows:
    """Concatenates windows of the same length. Beside examples, all tokens of running text count,
    and their places are positions in the window."""
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
    """Returns windows of a text at uniformly drawn positions."""
    starts = torch.randint(len(stream) - length + 1, (count,), generator=generator)
    windows = torch.stack([stream[start : start + length] for start in starts.tolist()])
    return with_bos(windows, bos_token_id)


def usual_bos(tokenizer: Any) -> int | None:
    """Returns the BOS token that a tokenizer puts before every text; None if it adds none."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def with_bos(windows: Int[Tensor, "B T"], bos_token_id: int | None) -> Int[Tensor, "B T"]:
    """Replaces the first token of every window by BOS; None leaves the windows as they are."""
    if bos_token_id is None:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], bos_token_id), windows[:, 1:]], 1)


@dataclass(frozen=True)
class Corpus:
    """Learning text, one stream of tokens per source."""

    streams: tuple[Stream, ...]
    weights: tuple[float, ...] = (1.0,)
    """Share of the windows that come from each source; they sum to 1."""
    bos_token_id: int | None = None
    """BOS that replaces the first token of every window of text; None = no BOS."""
    field: str = "text"
    """The setting that named the text."""
    names: tuple[str, ...] = ()
    """Names of the sources."""

    def require_length(self, tokens: int, setting: str) -> None:
        """Refuses texts shorter, and examples longer, than a window of `tokens` (see `setting`)."""
        for i, stream in enumerate(self.streams):
            if isinstance(stream, Tensor):
                name = self.names[i] if self.names else "the text"
                hint = f"give more text or a smaller `{setting}`"
                require_length(stream, tokens, self.field, name, hint)
            else:
                stream.require_length(tokens, setting)

    def nearest_length(self, tokens: int) -> int:
        """Returns the length nearest to `tokens` of a window that every text fills and in which
        every example fits."""
        texts = [len(stream) for stream in self.streams if isinstance(stream, Tensor)]
        examples = [
            len(stream.longest.tokens) for stream in self.streams if not isinstance(stream, Tensor)
        ]
        return max(min([tokens, *texts]), *examples, 0)

    def windows(self, source: int, count: int, length: int, noise: torch.Generator) -> Windows:
        """Returns random windows of one source."""
        stream = self.streams[source]
        if isinstance(stream, Tensor):
            return Windows(random_windows(stream, count, length, noise, self.bos_token_id))
        return stream.random_windows(count, length, noise)

    def draw(self, count: int, length: int, noise: torch.Generator) -> Windows:
        """Returns windows of all sources in random order. Each source gets its share by weight,
        rounded up or down, so that a step mixes the sources."""
        if len(self.streams) == 1:
            return self.windows(0, count, length, noise)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        ends = weights.cumsum(0) / weights.sum()
        first = torch.rand((), generator=noise, dtype=torch.float64)
        places = (torch.arange(count) + first) / count  # systematic sampling
        sources = torch.searchsorted(ends, places, right=True).clamp(max=len(weights) - 1)
        sources = sources[torch.randperm(count, generator=noise)]
        return joined([self.windows(source, 1, length, noise) for source in sources.tolist()])

    def draw_own(
        self, count: int, length: int, noise: torch.Generator, process: Process
    ) -> Windows:
        """Returns this process's `count` windows of a batch that all processes draw identically."""
        windows = self.draw(count * process.count, length, noise)
        return windows[process.own(torch.arange(len(windows)))]


def opening(stream: Stream, tokens: int) -> Int[Tensor, " N"]:
    """Returns the first tokens of a text, or the prompt of the first example."""
    return stream[:tokens] if isinstance(stream, Tensor) else stream.examples[0].prompt


def require_length(
    stream: Tensor, tokens: int, field: str, name: str, hint: str = "give more text"
) -> None:
    """Refuses a stream that cannot fill one window."""
    if len(stream) < tokens:
        raise InputError(
            f"{name} has {len(stream)} tokens and a window takes {tokens}", field=field, hint=hint
        )


def eval_windows(
    stream: Int[Tensor, " N"], config: PerplexityConfig, bos_token_id: int | None = None
) -> Int[Tensor, "B T"]:
    """Returns windows in order from the start; a stream shorter than one becomes one window."""
    context = min(config.context, len(stream))
    windows = stream.unfold(0, context, context)
    if config.windows and len(windows) < config.windows:
        warnings.warn(
            f"the text fills {len(windows)} of {config.windows} windows of {context} tokens",
            stacklevel=2,
        )
    return with_bos(windows[: config.windows] if config.windows else windows, bos_token_id)
