"""Perplexity of a dense, a masked or a compact model: the same code for all three.

It is `exp` of the mean −ln p over the scored tokens. Its standard error comes from the spread of
the windows' means (tokens of one window are not independent), each of which counts as its tokens
do, and the slope of `exp`.

B windows, T tokens of a window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.windows import Stream, eval_windows
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_positions
from disp_llm.runs.scores import Perplexity
from disp_llm.training.losses import mean_losses, token_losses

if TYPE_CHECKING:
    from disp_llm.data.examples import ExampleStream

LARGEST = 700.0
"""Nats a token beyond which a perplexity, or its standard error, is no finite number."""


@dataclass(frozen=True)
class WindowLosses:
    """What a model lost on each window of a text."""

    sums: list[float]
    """Sum of −ln p over the tokens that the window scores."""
    counts: list[int]
    """Number of these tokens."""
    window: int
    """T."""

    @property
    def means(self) -> list[float]:
        """Mean −ln p of each window."""
        return [total / count for total, count in zip(self.sums, self.counts, strict=True)]

    def perplexity(self) -> Perplexity:
        """Perplexity over all windows.

        Raises:
            InputError: the loss is no number of which there is a perplexity.
        """
        mean = sum(self.sums) / sum(self.counts)
        if not mean < LARGEST:
            raise InputError(
                f"its loss on the text is {mean:g}", field="model", hint="try the `dtype` float32"
            )
        value, error, n = math.exp(mean), None, len(self.sums)
        if n > 1:
            pairs = zip(self.sums, self.counts, strict=True)
            spread = sum((total - mean * count) ** 2 for total, count in pairs) * n / (n - 1)
            error = value * math.sqrt(spread) / sum(self.counts)
        losses = [round(loss, 6) for loss in self.means]
        counts = self.counts if len(set(self.counts)) > 1 else []
        tokens = sum(self.counts)
        return Perplexity(value, error, tokens, self.window, self.window, losses, counts)


def perplexity(
    target: PrunableModel,
    stream: Stream,
    config: PerplexityConfig,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Measures perplexity over windows of a stream of tokens; of examples, that of their answers,
    each read alone, over as many from the start as the windows have tokens.

    Args:
        on_window: called with (done, total) after every window.
    """
    if isinstance(stream, Tensor):
        windows = eval_windows(stream, config, target.bos_token_id)
        return window_losses(target, windows, on_window).perplexity()
    return answer_losses(target, stream, config, on_window).perplexity()


@torch.no_grad()
def window_losses(
    target: PrunableModel,
    windows: Int[Tensor, "B T"],
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> WindowLosses:
    """What a model loses on each of some windows, whose first tokens are not predicted.

    Args:
        on_window: called with (done, total) after every window.
    """
    context = windows.shape[1]
    require_positions(target.model, context, "context")
    sums, counts = [], []
    for done, window in enumerate(windows, start=1):
        losses = token_losses(target, window[None].to(target.device)).squeeze(0)
        sums.append(float(losses.double().sum()))
        counts.append(len(losses))
        on_window(done, len(windows))
    return WindowLosses(sums, counts, context)


@torch.no_grad()
def answer_losses(
    target: PrunableModel,
    stream: "ExampleStream",
    config: PerplexityConfig,
    on_example: Callable[[int, int], None] = lambda done, total: None,
) -> WindowLosses:
    """What a model loses on the answers of examples, or on choices that have their own loss.

    Args:
        on_example: called with (done, total) after every example.
    """
    stream.require_length(config.context, "context")
    require_positions(target.model, len(stream.longest.tokens), "context")
    sums, counts = [], []
    measured = stream.within(config.tokens)
    for done, windows in enumerate(measured.alone(), start=1):
        loss = mean_losses(target, windows.to(target.device))
        counts.append(windows.choices)
        sums.append(float(loss.double()) * counts[-1])
        on_example(done, len(measured.examples))
    longest = len(measured.longest.tokens)
    return WindowLosses(sums, counts, longest)
