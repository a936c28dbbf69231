"""Two models on the same windows: the ratio of their perplexities with the error of the pairs.

What makes a window hard is hard for both models, so that the ratio is known far better than either
perplexity. Its error is the bootstrap's (Efron 1979): the spread of the ratio over many draws of as
many windows, with replacement, the same ones for both.

B windows, R resamples.
"""

from collections.abc import Sequence

import torch

RESAMPLES = 2000


def paired_ratio(
    losses: Sequence[float], others: Sequence[float], tokens: Sequence[int] = ()
) -> tuple[float, float | None]:
    """One model's perplexity as a multiple of another's, and its standard error.

    Args:
        losses: mean −ln p of each window, of the one.
        others: the same of the other, of the same windows.
        tokens: how many tokens each window scores; none given = all as many.

    Returns:
        The ratio and its error; no error of a single window.
    """
    one, other = (torch.tensor(list(values), dtype=torch.float64) for values in (losses, others))
    counts = torch.tensor(list(tokens) or [1] * len(one), dtype=torch.float64)
    assert len(one) == len(other) == len(counts) > 0
    sums = (one - other) * counts
    ratio = float((sums.sum() / counts.sum()).exp())
    if len(one) < 2:
        return ratio, None
    generator = torch.Generator().manual_seed(0)  # the same figures give the same error
    drawn = torch.randint(len(one), (RESAMPLES, len(one)), generator=generator)  # (R, B)
    ratios = (sums[drawn].sum(1) / counts[drawn].sum(1)).exp()
    return ratio, float(ratios.std())
