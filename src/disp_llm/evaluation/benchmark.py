"""Speed of two models in one process and in turn, beside what counting predicts.

A round times one model and then the other, the next round the other way about. Beside the measured
speed-up stands what the counted operations (prefill) and bytes (decode) predict.

B batch, T tokens.
"""

import statistics
from dataclasses import asdict, dataclass
from typing import Annotated

from msgspec import Meta

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at, widths_of
from disp_llm.config.schema import Amount, Count, Positive, Size
from disp_llm.evaluation.timing import Pair, Workload, paired, quartiles
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import cached_numbers
from disp_llm.runs.progress import ProgressCallback, counted, silent
from disp_llm.runs.results import Phase


@dataclass(frozen=True)
class BenchRow:
    """One model under one workload."""

    model: str
    phase: Phase
    length: Size
    batch: Size
    median_s: Positive
    spread_s: Amount
    """Between the quartiles."""
    tokens_per_s: Positive
    flops: Count
    block_flops: Count
    bytes_read: Count
    peak_memory_bytes: Count


@dataclass(frozen=True)
class BenchComparison:
    """The second model's speed-up over the first under one workload."""

    phase: Phase
    length: Size
    batch: Size
    speedup: Positive
    speedup_quartiles: Annotated[list[Amount], Meta(min_length=2, max_length=2)]
    predicted_speedup: Positive
    predicted_from: str
    """What was counted for the prediction: `flops` or `bytes_read`."""


@dataclass(frozen=True)
class Counted:
    """What a workload takes at least, of one model."""

    flops: int
    """Floating-point operations, two a weight and token."""
    bytes_read: int
    """Bytes of weights, each read once, and of the KV cache, by every block that has them."""
    block_flops: int
    """Operations of the linear layers of the blocks alone."""


def side_by_side(
    targets: list[PrunableModel],
    names: list[str],
    workloads: list[Workload],
    rounds: int,
    progress: ProgressCallback = silent,
) -> tuple[list[BenchRow], list[BenchComparison]]:
    """Times the second model against the first.

    Args:
        names: what the models are called in the rows.

    Returns:
        For each workload a row of the first model and one of the second, and for each workload how
        they compare. The peak memory of a row is 0: only a process of its own can measure it.
    """
    rows, comparisons = [], []
    for workload in workloads:
        first, second = (target.model for target in targets)
        pair = paired(first, second, workload, rounds, counted(progress, workload.name))
        costs = [count(target, workload) for target in targets]
        times = (pair.first, pair.second)
        for name, target, seconds, cost in zip(names, targets, times, costs, strict=True):
            rows.append(_row(name, target, workload, seconds, cost))
        comparisons.append(compare(workload, pair, costs))
    return rows, comparisons


def _row(
    name: str, target: PrunableModel, workload: Workload, seconds: list[float], cost: Counted
) -> BenchRow:
    """The figures of one model under one workload."""
    tokens = workload.batch * (workload.length if workload.phase == "prefill" else 1)
    median = statistics.median(seconds)
    low, _, high = quartiles(seconds)
    return BenchRow(
        model=name,
        phase=workload.phase,
        length=workload.length,
        batch=workload.batch,
        median_s=median,
        spread_s=high - low,
        tokens_per_s=tokens / median,
        **asdict(cost),
        peak_memory_bytes=0,
    )


def compare(workload: Workload, pair: Pair, counted: list[Counted]) -> BenchComparison:
    """The second model's speed-up over the first, with its quartiles, and the counted one."""
    low, median, high = pair.speedup
    key = "flops" if workload.phase == "prefill" else "bytes_read"
    first, second = (getattr(one, key) for one in counted)
    return BenchComparison(
        phase=workload.phase,
        length=workload.length,
        batch=workload.batch,
        speedup=median,
        speedup_quartiles=[low, high],
        predicted_speedup=first / second,
        predicted_from=key,
    )


def count(target: PrunableModel, workload: Workload) -> Counted:
    """Counts operations and bytes of the linear layers of the blocks, of attention (causal) and of
    the head, which computes the last position only; of experts, as far as tokens use them."""
    head = target.head_weight.numel()
    attentions = [pair for pair in target.present if target.family.is_attention(pair[1])]
    q = sum(widths_of(linear_at(block, own.writes))[0] for block, own in attentions)
    prefill = workload.phase == "prefill"
    fresh = workload.length if prefill else 1
    pairs = workload.length * (workload.length + 1) // 2 if prefill else workload.length + 1
    of_token, read = map(target.block_parameters_of, (1, workload.batch * fresh))
    flops = workload.batch * (2 * of_token * fresh + 4 * q * pairs + 2 * head)
    # A prompt of one token counts the cache as decoding does.
    cached = workload.batch * workload.length if fresh == 1 else 0
    from_cache = cached * _read_of_token(target)
    return Counted(
        flops=flops,
        bytes_read=target.dtype.itemsize * (read + head + from_cache),
        block_flops=workload.batch * 2 * of_token * fresh,
    )


def _read_of_token(target: PrunableModel) -> int:
    """Numbers that all attentions read of a token from the KV cache: their own, or those of the
    last block of their kind that has some."""
    kinds = getattr(target.model.config.get_text_config(), "layer_types", None)
    last, read = dict[str, int](), 0
    for block, kind in zip(target.blocks, kinds or [""] * len(target.blocks), strict=True):
        attention, _ = target.branches_of(block)
        if target.family.is_attention(attention) and has_branch(block, attention.scatter):
            last[kind] = cached_numbers(block, target.family) or last[kind]
            read += last[kind]
    return read
