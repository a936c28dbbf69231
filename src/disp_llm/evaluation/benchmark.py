"""Times two models alternately in one process and compares their speed with a counted prediction.

A round times both models; the order alternates between rounds. The predicted speed-up is the ratio
of counted operations (prefill) or bytes (decode).
"""

from dataclasses import asdict, dataclass
from typing import Any

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at, widths_of
from disp_llm.evaluation.timing import IN_TRANSFORMERS, Pair, Workload, quartiles
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import cached_numbers
from disp_llm.models.kv_cache import cached_tokens
from disp_llm.runs.progress import ProgressCallback, counting, silent


@dataclass(frozen=True)
class Counted:
    """Least work of one model for a workload."""

    flops: int
    """Floating-point operations: two per weight and token, and those of attention."""
    block_flops: int
    """Operations of the linear layers of the blocks alone."""
    bytes_read: int
    """Bytes of weights, each read once, and, if one token is read, of each block's KV cache."""


def side_by_side(
    targets: list[PrunableModel],
    names: list[str],
    workloads: list[Workload],
    rounds: int,
    progress: ProgressCallback = silent,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times the second model against the first. Returns a row per workload and model, and a
    comparison per workload."""
    rows, comparisons = [], []
    for workload in workloads:
        first, second = (target.model for target in targets)
        ticks = counting(progress, workload.name)
        pair = IN_TRANSFORMERS.paired(first, second, workload, rounds, ticks)
        costs = [count(target, workload) for target in targets]
        for name, seconds, cost in zip(names, (pair.first, pair.second), costs, strict=True):
            rows.append({"model": name} | _row(workload, seconds, cost))
        comparisons.append(compare(workload, pair, costs))
    return rows, comparisons


def _row(workload: Workload, seconds: list[float], cost: Counted) -> dict[str, Any]:
    """Figures of one model under one workload; `spread_s` is the interquartile range."""
    tokens = workload.batch * (workload.length if workload.phase == "prefill" else 1)
    low, median, high = quartiles(seconds)
    timed = {"median_s": median, "spread_s": high - low, "tokens_per_s": tokens / median}
    return asdict(workload) | timed | asdict(cost)


def compare(workload: Workload, pair: Pair, counted: list[Counted]) -> dict[str, Any]:
    """Returns the second model's speed-up over the first, its quartiles, and the counted one."""
    low, median, high = pair.speedup
    key = "flops" if workload.phase == "prefill" else "bytes_read"
    first, second = (getattr(one, key) for one in counted)
    return asdict(workload) | {
        "speedup": median,
        "speedup_quartiles": [low, high],
        "predicted_speedup": first / second,
        "predicted_from": key,
    }


def count(target: PrunableModel, workload: Workload) -> Counted:
    """Counts operations and bytes of the blocks' linear layers, of causal attention, and of the
    head at the last position only. Of experts it counts those that the tokens use."""
    head = target.head_weight.numel()
    prefill = workload.phase == "prefill"
    fresh = workload.length if prefill else 1
    attention, read_of_cache = _of_attention(target, workload.length, prefill)
    of_token, read = map(target.block_parameters_of, (1, workload.batch * fresh))
    flops = workload.batch * (2 * of_token * fresh + attention + 2 * head)
    # A prompt of one token counts the cache as decoding does.
    from_cache = workload.batch * read_of_cache if fresh == 1 else 0
    return Counted(
        flops=flops,
        bytes_read=target.dtype.itemsize * (read + head + from_cache),
        block_flops=workload.batch * 2 * of_token * fresh,
    )


def _of_attention(target: PrunableModel, length: int, prefill: bool) -> tuple[int, int]:
    """Returns the operations of all attentions for one sequence, and the numbers that one more
    token reads from the KV cache. A block without a cache of its own reads that of the last block
    of its kind. A sliding window limits what a token sees."""
    held = cached_tokens(target.model, length, 1)
    kinds = getattr(target.model.config.get_text_config(), "layer_types", None) or [""] * len(held)
    last, operations, read = dict[str, int](), 0, 0
    for block, kind, tokens in zip(target.blocks, kinds, held, strict=True):
        own, _ = target.branches_of(block)
        if not (target.family.is_attention(own) and has_branch(block, own.scatter)):
            continue
        last[kind] = cached_numbers(block, target.family) or last[kind]
        read += last[kind] * tokens
        seen = min(length, tokens + 1)  # itself included
        pairs = seen * (seen + 1) // 2 + (length - seen) * seen if prefill else tokens + 1
        operations += 4 * widths_of(linear_at(block, own.writes))[0] * pairs
    return operations, read
