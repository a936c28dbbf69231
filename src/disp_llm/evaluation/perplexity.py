"""Perplexity of a dense, a masked or a compact model: the same code for all three.

It is `exp` of the mean −ln p over the scored tokens. Its standard error comes from the spread of
the windows' means (tokens of one window are not independent) and the slope of `exp`.

B windows, T tokens of a window.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.tokens import eval_windows
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_positions
from disp_llm.runs.results import Perplexity
from disp_llm.training.losses import token_losses

LARGEST = 700.0
"""Nats a token beyond which a perplexity, or its standard error, is no finite number."""


@torch.no_grad()
def perplexity(
    target: PrunableModel,
    stream: Int[Tensor, " N"],
    config: PerplexityConfig,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Measures perplexity over windows of a stream of tokens.

    Without overlap (stride = context) the first token of each window is not predicted. With overlap
    only the tokens that the window before did not score count.

    Args:
        on_window: called with (done, total) after every window.

    Raises:
        InputError: a window is longer than what the model was made for, or the loss is no number
            of which there is a perplexity.
    """
    windows = eval_windows(stream, config, target.bos_token_id)  # (B, T)
    require_positions(target.model, windows.shape[1], "context")
    context = windows.shape[1]
    stride = min(config.stride or context, context)
    sums, counts = [], []
    for done, window in enumerate(windows, start=1):
        losses = token_losses(target, window[None].to(target.device)).squeeze(0)
        fresh = losses if done == 1 or stride == context else losses[-stride:]
        sums.append(float(fresh.double().sum()))
        counts.append(len(fresh))
        on_window(done, len(windows))
    mean = sum(sums) / sum(counts)
    means = torch.tensor(sums, dtype=torch.float64) / torch.tensor(counts)
    if not mean < LARGEST:
        raise InputError(
            f"its loss on the text is {mean:g}", field="model", hint="try the `dtype` float32"
        )
    value, error = math.exp(mean), None
    if len(means) > 1:
        error = value * float(means.std()) / math.sqrt(len(means))
    return Perplexity(value, error, sum(counts), context, stride)
