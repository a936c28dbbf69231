"""Speed of two models in one process and in turn, beside what counting predicts.

A round times one model and then the other, the next round the other way about. Beside the measured
speed-up stands what the counted operations (prefill) and bytes (decode) predict.

B batch, T tokens.
"""

from dataclasses import asdict, dataclass
from typing import Any

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at, widths_of
from disp_llm.evaluation.timing import IN_TRANSFORMERS, Pair, Workload, quartiles
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import cached_numbers
from disp_llm.runs.progress import ProgressCallback, counting, silent


@dataclass(frozen=True)
class Counted:
    """What a workload takes at least, of one model."""

    flops: int
    """Floating-point operations, two a weight and token."""
    block_flops: int
    """Those of the linear layers of the blocks alone."""
    bytes_read: int
    """Bytes of weights, each read once, and of the KV cache, by every block that has them."""


def side_by_side(
    targets: list[PrunableModel],
    names: list[str],
    workloads: list[Workload],
    rounds: int,
    progress: ProgressCallback = silent,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times the second model against the first: for each workload a row of either model, and how
    they compare."""
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
    """The figures of one model under one workload; `spread_s` lies between the quartiles."""
    tokens = workload.batch * (workload.length if workload.phase == "prefill" else 1)
    low, median, high = quartiles(seconds)
    timed = {"median_s": median, "spread_s": high - low, "tokens_per_s": tokens / median}
    return asdict(workload) | timed | asdict(cost)


def compare(workload: Workload, pair: Pair, counted: list[Counted]) -> dict[str, Any]:
    """The second model's speed-up over the first, with its quartiles, and the counted one."""
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
