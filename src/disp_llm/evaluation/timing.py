"""Times models on a workload, alternating between them."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from disp_llm.config.names import BRANCHES, HEADS, SITES, Site
from disp_llm.models.kv_cache import with_cache
from disp_llm.models.windows import fitting
from disp_llm.runs.progress import ProgressCallback, Ticks, counting, silent, unwatched
from disp_llm.runs.results import Phase, workload_said

Measured = TypeVar("Measured")

WARM_UP = 2
"""Untimed runs of each model before the timed ones."""


@dataclass(frozen=True)
class Workload:
    """Tokens that a model is timed on."""

    phase: Phase
    """prefill: a prompt of `length` tokens; decode: one token after `length` cached ones."""
    length: int
    batch: int
    """Number of sequences."""

    @property
    def name(self) -> str:
        """Name for people to read, such as `prefill, 512 tokens`."""
        return workload_said(self.phase, self.length, self.batch)


USUAL = (Workload("prefill", 512, 1), Workload("decode", 512, 1))
"""Default workloads; a model with fewer positions gets shorter ones (`fitted`)."""


def fitted(workload: Workload, *models: PreTrainedModel) -> Workload:
    """Returns the workload, shortened so that all models can read it and one decoded token."""
    longest = min(fitting(model, workload.length + 1) for model in models) - 1
    return replace(workload, length=longest)


def in_turn(
    runs: list[Callable[[], Measured]],
    rounds: int,
    on_round: Ticks = unwatched,
    warm_up: int = WARM_UP,
) -> list[list[Measured]]:
    """Calls the runs once a round, alternately in this and in reverse order; returns a list of
    results for each."""
    for run in runs:
        for _ in range(warm_up):
            run()
    times: list[list[Measured]] = [[] for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            times[index].append(runs[index]())
        on_round(turn + 1, rounds)
    return times


@dataclass(frozen=True)
class Pair:
    """Seconds of two models for one workload, round by round."""

    first: list[float]
    second: list[float]

    @property
    def speedup(self) -> list[float]:
        """Quartiles over rounds of first / second time. Ratios are taken within a round, so that
        other load on the machine cancels out."""
        return quartiles([one / other for one, other in zip(self.first, self.second, strict=True)])

    @property
    def share(self) -> float:
        """Second time as a share of the first: the median over rounds."""
        return Pair(self.second, self.first).speedup[1]

    @property
    def least_share(self) -> float:
        """The same share from the fastest round of each. Other load on the machine only lengthens
        times, and one model that it slows down twofold would spoil a fit."""
        return min(self.second) / min(self.first)


class Stopwatch:
    """Times two models alternately in transformers; subclasses time them in other programs."""

    program = "transformers"
    """Program that runs the models."""
    version = ""
    """Version of that program; empty if provenance already records it."""
    sites: tuple[Site, ...] = (*SITES, HEADS, *BRANCHES)
    """Sites that may be pruned in a model that the program runs."""

    def paired(
        self,
        first: PreTrainedModel,
        second: PreTrainedModel,
        workload: Workload,
        rounds: int,
        on_round: Ticks = unwatched,
    ) -> Pair:
        """Returns the seconds of both models, the first of which is the dense one."""
        models = (first, second)
        return Pair(*in_turn([runner(one, workload) for one in models], rounds, on_round))


IN_TRANSFORMERS = Stopwatch()


def quartiles(values: list[float]) -> list[float]:
    """Returns the three quartiles of one or more numbers, all within their range."""
    return statistics.quantiles(values * (2 if len(values) == 1 else 1), n=4, method="inclusive")


def speed_against(
    original: PreTrainedModel,
    model: PreTrainedModel,
    rounds: int,
    progress: ProgressCallback = silent,
    name: str = "",
    stopwatch: Stopwatch = IN_TRANSFORMERS,
) -> dict[str, float]:
    """Times a model alternately with the original; returns an empty dict for 0 rounds.

    For prefill and for decode: `…_ms` and `…_original_ms`, medians in milliseconds, and
    `…_speedup`, the median over rounds of original / own time, with its quartiles
    `…_speedup_low` and `…_speedup_high`.
    """
    figures: dict[str, float] = {}
    for usual in USUAL if rounds else ():
        workload, phase = fitted(usual, original, model), usual.phase
        ticks = counting(progress, f"{name}timing {phase}")
        pair = stopwatch.paired(original, model, workload, rounds, ticks)
        low, middle, high = pair.speedup
        figures |= {
            f"{phase}_ms": 1e3 * statistics.median(pair.second),
            f"{phase}_original_ms": 1e3 * statistics.median(pair.first),
            f"{phase}_speedup": middle,
            f"{phase}_speedup_low": low,
            f"{phase}_speedup_high": high,
        }
    return figures


def runner(model: PreTrainedModel, workload: Workload) -> Callable[[], float]:
    """Returns a function that runs the workload once and returns its seconds."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (workload.batch, workload.length), generator=generator).to(
        device
    )
    if workload.phase == "prefill":
        return lambda: _timed(model, tokens, DynamicCache(config=model.config))
    filled = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens, logits_to_keep=1, **with_cache(model, filled))
    # A step appends to its cache: each round gets a copy, so that all start at the same length.
    return lambda: _timed(model, tokens[:, -1:], copy.deepcopy(filled))


def _timed(model: PreTrainedModel, tokens: Tensor, cache: DynamicCache) -> float:
    options = with_cache(model, cache)
    with _as_loaded(model), torch.inference_mode():
        _wait(tokens.device)
        began = time.perf_counter()
        model(tokens, logits_to_keep=1, **options)
        _wait(tokens.device)
        return time.perf_counter() - began


@contextmanager
def _as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Makes weights require a gradient while the context lasts, as `from_pretrained` leaves them.

    If the head is frozen, torch copies all of it before it multiplies one row of a longer prompt,
    which takes longer than all blocks together.
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
