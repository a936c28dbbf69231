"""Perplexity of dense, masked and compact models, with the same code for all three.

Perplexity is `exp` of the mean −ln p over the scored tokens. Its standard error follows from the
slope of `exp` and the spread of the windows' means, weighted by their tokens: tokens of one window
are not independent. A model with a smaller vocabulary reads the same windows in its own tokens
(`Spelling`); the sum of their losses is divided by the number of tokens of the whole vocabulary.

B windows, T tokens of a window.
"""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.example_tokens import ExampleStream
from disp_llm.data.spelling import Spelling
from disp_llm.data.windows import Stream, eval_windows
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_pieces, require_positions
from disp_llm.runs.progress import Ticks, unwatched
from disp_llm.runs.scores import Perplexity
from disp_llm.training.losses import mean_losses, token_losses

LARGEST = 700.0
"""Nats per token from which on a perplexity or its standard error may overflow."""


def perplexity(
    target: PrunableModel,
    stream: Stream,
    config: PerplexityConfig,
    on_window: Ticks = unwatched,
    spelling: Spelling | None = None,
) -> Perplexity:
    """Measures perplexity over windows of a text, or over the answers of examples. Each example is
    read alone; the first ones count, as many as have no more tokens than the windows.

    Args:
        spelling: maps the stream's tokens to the model's smaller vocabulary; None if it has all.
    """
    if isinstance(stream, Tensor):
        windows = windows_of(target, stream, config, spelling)
        return of_windows(target, windows, on_window, spelling)
    return of_answers(target, stream, config, on_window, spelling)


def windows_of(
    target: PrunableModel,
    stream: Int[Tensor, " N"],
    config: PerplexityConfig,
    spelling: Spelling | None = None,
) -> Int[Tensor, "B T"]:
    """Returns the windows of a text, in the stream's own tokens."""
    bos = target.bos_token_id if spelling is None else spelling.bos_token_id
    return eval_windows(stream, config, bos)


def require_readable(
    target: PrunableModel, windows: Int[Tensor, "B T"], spelling: Spelling | None = None
) -> None:
    """Refuses windows with more tokens, or more pieces, than the model can read."""
    if spelling is None:
        require_positions(target.model, windows.shape[1], "context")
    else:
        require_pieces(target.model, int(spelling.lengths(windows).sum(1).max()))


@torch.no_grad()
def of_windows(
    target: PrunableModel,
    windows: Int[Tensor, "B T"],
    on_window: Ticks = unwatched,
    spelling: Spelling | None = None,
) -> Perplexity:
    """Measures perplexity over windows; the first token of each is not predicted."""
    require_readable(target, windows, spelling)
    context = windows.shape[1]
    sums = []
    for done, window in enumerate(windows, start=1):
        pieces, given = window, 1
        if spelling is not None:
            pieces, given = spelling(window), len(spelling(window[:1]))
        losses = token_losses(target, pieces[None].to(target.device))[:, given - 1 :]
        sums.append(float(losses.double().sum()))
        on_window(done, len(windows))
    return perplexity_of(sums, [context - 1] * len(sums), context)


@torch.no_grad()
def of_answers(
    target: PrunableModel,
    stream: ExampleStream,
    config: PerplexityConfig,
    on_example: Ticks = unwatched,
    spelling: Spelling | None = None,
) -> Perplexity:
    """Measures perplexity of the answers of examples, or of the choices in a loss of their own."""
    stream.require_length(config.context, "context")
    sums, counts = [], []
    measured = stream.within(config.tokens)
    pieces = measured if spelling is None else spelling.examples(measured)
    require_positions(target.model, len(pieces.longest.tokens), "context")
    for done, (whole, windows) in enumerate(
        zip(measured.alone(), pieces.alone(), strict=True), start=1
    ):
        loss = mean_losses(target, windows.to(target.device))
        counts.append(whole.choices)
        sums.append(float(loss.double()) * windows.choices)
        on_example(done, len(measured.examples))
    return perplexity_of(sums, counts, len(measured.longest.tokens))


def perplexity_of(sums: list[float], counts: list[int], window: int) -> Perplexity:
    """Returns the perplexity from the sum of −ln p and the number of scored tokens of each window.

    Raises:
        InputError: the mean loss is NaN or at least `LARGEST`.
    """
    tokens, n = sum(counts), len(sums)
    mean = sum(sums) / tokens
    if not mean < LARGEST:
        raise InputError(
            f"its loss on the text is {mean:g}", field="model", hint="try the `dtype` float32"
        )
    value, error = math.exp(mean), None
    pairs = list(zip(sums, counts, strict=True))
    if n > 1:
        spread = sum((total - mean * count) ** 2 for total, count in pairs) * n / (n - 1)
        error = value * math.sqrt(spread) / tokens
    losses = [round(total / count, 6) for total, count in pairs]
    unequal = counts if len(set(counts)) > 1 else []
    return Perplexity(value, error, tokens, window, window, losses, unequal)
