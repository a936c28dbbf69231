"""Perplexity of a dense, a masked or a compact model: the same code for all three.

`exp` of the mean −ln p over the scored tokens. Its standard error comes from the spread of the
windows' means (tokens of one window are not independent) and the slope of `exp`.

B windows, T tokens of a window.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.commands import EvalCommand
from disp_llm.config import EvalConfig, TextConfig
from disp_llm.export import count_block_parameters, count_parameters
from disp_llm.families import Family
from disp_llm.losses import head_of, token_losses
from disp_llm.models import load, opening_of, require_positions
from disp_llm.tasks import average, run_tasks
from disp_llm.text import (
    eval_windows,
    load_tokens,
    read_given,
    require_length,
    tokenize,
)


@dataclass(frozen=True)
class Perplexity:
    """A figure with what it was measured over."""

    perplexity: float
    perplexity_stderr: float | None
    """None for a single window."""
    tokens: int
    """Tokens scored: all but the first of the text or of each window, and no token twice."""
    window: int
    stride: int


def with_error(figures: dict[str, Any]) -> str:
    """`53.29 ± 7.51`, large ones `11,147 ± 2,698`; a single window has no standard error."""
    error = figures["perplexity_stderr"]
    form = ",.0f" if figures["perplexity"] >= 1000 else ".2f"
    return format(figures["perplexity"], form) + (f" ± {error:{form}}" if error is not None else "")


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    family: Family,
    stream: Int[Tensor, " N"],
    config: EvalConfig,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Measures perplexity over windows of a stream of tokens.

    Without overlap (stride = context) the first token of each window is not predicted. With overlap
    only the tokens that the window before did not score count.
    """
    windows = eval_windows(stream, config, opening_of(model, family))  # (B, T)
    require_positions(model, windows.shape[1], "--context")
    context = windows.shape[1]
    stride = min(config.stride or context, context)
    head = head_of(model, family)
    device = next(model.parameters()).device
    sums, counts = [], []
    for done, window in enumerate(windows, start=1):
        losses = token_losses(model, head, window[None].to(device)).squeeze(0)
        fresh = losses if done == 1 or stride == context else losses[-stride:]
        sums.append(float(fresh.double().sum()))
        counts.append(len(fresh))
        on_window(done, len(windows))
    mean = sum(sums) / sum(counts)
    means = torch.tensor(sums, dtype=torch.float64) / torch.tensor(counts)
    value, error = math.exp(mean), None
    if len(means) > 1:
        error = value * float(means.std()) / math.sqrt(len(means))
    return Perplexity(value, error, sum(counts), context, stride)


def evaluate(
    command: EvalCommand, on_window: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Perplexity and size of a model, a folder or the embedded default.

    Raises:
        InputError: the model or the text is unusable.
    """
    loaded = load(command.model, command.machine)
    result: dict[str, Any] = {
        "model": loaded.source["model"],
        "revision": loaded.source["revision"],
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "parameters": count_parameters(loaded.model),
        "block_parameters": count_block_parameters(loaded.model, loaded.family),
    }
    if command.text or command.dataset or not command.tasks:
        stream, source = eval_stream(command, loaded.tokenizer)
        measured = perplexity(loaded.model, loaded.family, stream, command.evaluation, on_window)
        result |= {"text": source} | asdict(measured)
    if command.tasks:
        pairs = (pair.partition("=") for pair in command.task_data)
        files = {name: Path(file) for name, _, file in pairs}
        result["tasks"] = run_tasks(loaded, command.tasks, files, command.limit)
        result["average"] = average(result["tasks"])
    return result


def eval_stream(command: EvalCommand, tokenizer) -> tuple[Tensor, str]:
    """The tokens that `eval` measures on, and where they come from.

    Raises:
        InputError: the text is unusable or empty.
    """
    given = read_given(command.text, command.dataset, command.text_field, "test")
    if given:
        stream, source = tokenize(given[0], tokenizer), given[1]
    else:
        _, stream, sources = load_tokens(TextConfig(), tokenizer)
        source = sources["eval_text"]
    require_length(stream, 2, "--text")
    return stream, source
