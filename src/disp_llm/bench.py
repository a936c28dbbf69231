"""Speed, memory and load time of two models, in one process and in turn.

A round times the one and then the other, the next round the other way about; a speed-up is the
median over rounds of the ratio within a round, so that what else the machine does cancels out.
Beside it stands what the counted operations (prefill) and bytes (decode) predict.

B batch, T tokens.
"""

import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from transformers import PreTrainedModel

from disp_llm.commands import BenchCommand
from disp_llm.config import MachineConfig
from disp_llm.export import count_block_parameters, head_weight, weight_bytes
from disp_llm.families import Family
from disp_llm.fuse import fuse
from disp_llm.masks import layout_of
from disp_llm.models import load
from disp_llm.runs import hardware, peak_memory_bytes, versions

WARM_UP = 2
"""Runs of each kind that are not timed."""


@dataclass(frozen=True)
class Work:
    """One kind of work."""

    phase: str
    """prefill: a prompt of `length` tokens; decode: one token after `length` cached ones."""
    length: int
    batch: int

    @property
    def name(self) -> str:
        of = f"{self.length} tokens" if self.phase == "prefill" else f"batch {self.batch}"
        return f"{self.phase}, {of}"


def bench(
    command: BenchCommand, on_round: Callable[[str, int, int], None] = lambda *progress: None
) -> dict[str, Any]:
    """Measures `command.folder` against `command.against`.

    Raises:
        InputError: a model is unusable.
    """
    names = (command.against, command.folder)
    alone = [in_own_process(name, command.machine, max(command.lengths)) for name in names]
    loaded = [load(name, command.machine) for name in names]
    models, families = [one.model for one in loaded], [one.family for one in loaded]
    if command.fuse:
        models = [fuse(model) for model in models]
    if command.compile:
        for model in models:
            model.forward = torch.compile(model.forward, dynamic=True)
    works = [Work("prefill", length, 1) for length in command.lengths]
    works += [Work("decode", command.context, batch) for batch in command.batches]
    results, comparisons = side_by_side(models, families, works, command.rounds, on_round)
    for index, row in enumerate(results):
        row["model"] = names[index % 2]
        row["peak_memory_bytes"] = alone[index % 2]["peak_memory_bytes"]
    return {
        "model": command.folder,
        "against": command.against,
        "dtype": str(models[0].dtype).removeprefix("torch."),
        "compiled": command.compile,
        "fused": command.fuse,
        "rounds": command.rounds,
        "results": results,
        "comparisons": comparisons,
        "speedup": _by_phase(comparisons, "speedup"),
        "predicted_speedup": _by_phase(comparisons, "predicted_speedup"),
        "loading": [{"model": name} | own for name, own in zip(names, alone, strict=True)],
        "hardware": hardware(),
        "versions": versions(),
    }


def side_by_side(
    models: list[PreTrainedModel],
    families: list[Family],
    works: list[Work],
    rounds: int,
    on_round: Callable[[str, int, int], None] = lambda *progress: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times the second model against the first.

    Returns:
        For each work the figures of the first model and of the second, and for each work how they
        compare.
    """
    results, comparisons = [], []
    for work in works:
        tick = _progress(on_round, work.name, rounds)
        times = in_turn([runner(model, work) for model in models], rounds, tick)
        counted = [count(*pair, work) for pair in zip(models, families, strict=True)]
        for model, seconds, cost in zip(models, times, counted, strict=True):
            tokens = work.batch * (work.length if work.phase == "prefill" else 1)
            median = statistics.median(seconds)
            low, _, high = statistics.quantiles(seconds, n=4)
            figures = {
                "phase": work.phase,
                "length": work.length,
                "batch": work.batch,
                "median_s": median,
                "spread_s": high - low,
                "tokens_per_s": tokens / median,
                "time_shares": where_time_goes(runner(model, work)),
            }
            results.append(figures | cost)
        comparisons.append(compare(work, times, counted))
    return results, comparisons


def _progress(on_round: Callable[[str, int, int], None], name: str, rounds: int) -> Callable:
    return lambda done: on_round(name, done, rounds)


def _by_phase(comparisons: list[dict[str, Any]], key: str) -> dict[str, float]:
    """One figure a phase: that of the longest prefill and of the smallest decode batch."""
    prefill = max((c for c in comparisons if c["phase"] == "prefill"), key=lambda c: c["length"])
    decode = min((c for c in comparisons if c["phase"] == "decode"), key=lambda c: c["batch"])
    return {"prefill": prefill[key], "decode": decode[key]}


def compare(work: Work, times: list[list[float]], counted: list[dict[str, int]]) -> dict[str, Any]:
    """The second model's speed-up over the first, with its quartiles, and the counted one."""
    ratios = [first / second for first, second in zip(*times, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    key = "flops" if work.phase == "prefill" else "bytes_read"
    return {
        "phase": work.phase,
        "length": work.length,
        "batch": work.batch,
        "speedup": median,
        "speedup_quartiles": [low, high],
        "predicted_speedup": counted[0][key] / counted[1][key],
        "predicted_from": key,
    }


def in_turn(
    runs: list[Callable[[], float]],
    rounds: int,
    on_round: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Seconds of each of `runs`, a list a run; who goes first alternates."""
    for run in runs:
        for _ in range(WARM_UP):
            run()
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            times[index].append(runs[index]())
        on_round(turn + 1)
    return times


def runner(model: PreTrainedModel, work: Work) -> Callable[[], float]:
    """A function that does the work once and returns its seconds."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (work.batch, work.length), generator=generator).to(device)
    if work.phase == "prefill":
        return lambda: _timed(model, tokens, None)
    with torch.inference_mode():
        filled = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    # Copies of one cache: a step appends to it, and every round is to find the same length.
    return lambda: _timed(model, tokens[:, -1:], copy.deepcopy(filled))


def _timed(model: PreTrainedModel, tokens: Tensor, cache: Any) -> float:
    with _as_loaded(model), torch.inference_mode():
        _wait(tokens.device)
        began = time.perf_counter()
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        _wait(tokens.device)
        return time.perf_counter() - began


@contextmanager
def _as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Weights that require a gradient, as `from_pretrained` leaves them.

    torch multiplies one row of a longer prompt by a frozen head in a way that first copies the
    whole head: more than all blocks together take.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count(model: PreTrainedModel, family: Family, work: Work) -> dict[str, int]:
    """Floating-point operations, and bytes of weights and cache that are read at least once.

    Of the linear layers of the blocks, of attention (causal) and of the head, for its last
    position only.
    """
    width = next(model.parameters()).element_size()
    head = head_weight(model).numel()
    blocks = count_block_parameters(model, family)
    shapes = layout_of(model, family).blocks
    q = sum(shape.q for shape in shapes)
    cached = sum(shape.qkv - shape.q for shape in shapes)
    fresh = work.length if work.phase == "prefill" else 1
    pairs = work.length * (work.length + 1) // 2 if work.phase == "prefill" else work.length + 1
    flops = work.batch * (2 * blocks * fresh + 4 * q * pairs + 2 * head)
    read = width * (blocks + head + (work.batch * cached * work.length if fresh == 1 else 0))
    return {"flops": flops, "bytes_read": read, "block_flops": work.batch * 2 * blocks * fresh}


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn", "aten::linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "selections": ("aten::index",),
}
"""Operators by their names; whatever fits none is "the rest"."""


def where_time_goes(run: Callable[[], float], repeats: int = 3) -> dict[str, float]:
    """Shares of the operators' own time; a compiled model's fused kernels are in "the rest"."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            run()
    # Kernels of a GPU are counted with the operators that launched them, which are the CPU's.
    events = [e for e in profile.key_averages() if e.device_type == DeviceType.CPU]
    on_gpu = any(event.self_device_time_total for event in events)
    spent = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for event in events:
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), "")
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[part or "the rest"] += own
    total = sum(spent.values())
    return {part: seconds / total for part, seconds in spent.items()}


def in_own_process(name: str, machine: MachineConfig, length: int) -> dict[str, Any]:
    """Load time, peak memory and bytes on disk, from a process that does nothing else.

    Raises:
        InputError: the model is unusable.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_load_and_run, name, machine, length).result()


def _load_and_run(name: str, machine: MachineConfig, length: int) -> dict[str, Any]:
    began = time.perf_counter()
    loaded = load(name, machine)
    seconds = time.perf_counter() - began
    runner(loaded.model, Work("prefill", length, 1))()
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    on_disk = weight_bytes(Path(name)) if Path(name).is_dir() else None
    return {
        "load_s": seconds,
        "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
        "parameters": parameters,
        "weight_bytes": on_disk or parameters * loaded.model.dtype.itemsize,
    }
