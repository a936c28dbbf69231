"""Tasks and groups of them through lm-evaluation-harness (extra `eval`), with the paper's metrics.

The paper reports acc for WinoGrande and acc_norm for the rest, without examples in the question
(zero-shot), and their average.

The accuracy of a group is the mean that lm-eval takes over its K tasks, Σ W_k a_k of accuracies a_k
over n_k questions, with W_k = n_k / n by size, else 1 / K; its variance is the sum of those of its
parts, Σ W_k² a_k (1 − a_k) / (n_k − 1).
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.suites import SuiteTask
from disp_llm.evaluation.continuations import log_likelihoods
from disp_llm.evaluation.harness import (
    failure_in_one_line,
    load_tasks,
    parts_of,
    require_metric,
    require_tasks,
    task_manager,
    weighs_by_size,
)
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded

logger = logging.getLogger(__name__)

BATCH = 8
"""Requests that run together where text is to be written."""

ACCURACIES = ("acc_norm", "acc")
"""Metrics of questions with given answers."""

METRICS = (*ACCURACIES, "exact_match")
"""Metrics that are shares of right answers, the one that counts first."""


def metric_of(task: str, figures: Iterable[str]) -> str:
    """The metric that counts: acc for WinoGrande and where there is no other accuracy, else
    acc_norm; without either exact_match, by the first of the task's filters."""
    counted = [key for name in METRICS for key in figures if _bare(key) == name]
    return "acc" if task == "winogrande" and "acc" in counted else counted[0]


@dataclass(frozen=True)
class Runs:
    """A model, and what it is asked."""

    target: PrunableModel
    tokenizer: Any
    data: dict[str, Path]
    """Local files by task."""
    limit: int
    """Number of questions of each task; 0 = all."""
    shots: int | None
    """Solved questions that stand in front of each; None = as many as the task says itself."""
    on_request: Callable[[int, int], None]
    """Called with (done, total) as answers are scored."""


@dataclass(frozen=True)
class Answers:
    """Which questions of a task a model got right."""

    figures: dict[str, Any]
    """What `run_tasks` says of the task."""
    right: list[float]
    """By question, in the task's order: 1 where the answer is right by the metric, else 0."""
    questions_sha256: str
    """The hash of lm-eval's hashes of the questions, in the same order; with shots, also of those
    of the prompts that these stand in."""


def run_tasks(
    loaded: Loaded,
    names: Iterable[str],
    data: dict[str, Path],
    limit: int,
    shots: int | None = None,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Accuracies by task: `{acc, acc_norm, stderr, n, metric, shots}`; stderr is that of `metric`.
    A task that is answered in words has exact_match instead, and if filters find the answers in the
    words, one for each: `{"exact_match,strict-match": …}`.

    Args:
        names: tasks or groups of them, or lists of these with commas; `paper` is the paper's five.
        data: local JSON-lines files, in the task's own format, in place of its hub data set.
        limit: number of questions of each task; 0 = all.
        shots: solved questions in front of each; None = as many as the task says itself.
        on_request: called with (done, total) as answers are scored.

    Raises:
        InputError: lm-eval is not installed, a task does not exist, has no such metric or not this
            number of shots, or its data cannot be had.
    """
    wanted = require_tasks(names, data)
    for name in wanted:
        require_metric(name, METRICS, "name another task, or run lm-eval itself")
    runs = Runs(PrunableModel.of(loaded), loaded.tokenizer, data, limit, shots, on_request)
    asked, results = _results(runs, wanted)
    return {name: _figures(name, asked[name], results) for name in wanted}


def require_answers(name: str, task: SuiteTask) -> None:
    """Refuses a task, or a group of them, of which `answers` cannot say what is right.

    Raises:
        InputError: it has another metric, or does not count every question alike.
    """
    require_metric(name, (task.metric,), "choose another metric, or another task")
    if not weighs_by_size(name, task.metric):
        what = f"{name} counts its tasks alike, whatever their size"
        raise InputError(what, field="tasks", hint="name those in it")


def answers(
    target: PrunableModel,
    tokenizer: Any,
    name: str,
    task: SuiteTask,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """What a model answers to every question of one task or group, which `require_answers` passes.

    Args:
        on_request: called with (done, total) as answers are scored.

    Raises:
        InputError: as `run_tasks`; or it has no answers that are right or wrong by the metric.
    """
    local = {} if task.data is None else {name: task.data}
    runs = Runs(target, tokenizer, local, task.limit, task.shots, on_request)
    asked, results = _results(runs, [name], samples=True)
    found = [
        sample
        for part in parts_of(asked[name])
        for sample in sorted(results["samples"][part.task_name], key=lambda one: one["doc_id"])
    ]
    if any(sample.get(task.metric) not in (0, 1) for sample in found):
        hint = "choose another metric, or another task"
        raise InputError(
            f"no question is right or wrong by {task.metric}", field="tasks", hint=hint
        )
    figures = _figures(name, asked[name], results, task.metric)
    keys = ("doc_hash", "prompt_hash") if figures["shots"] else ("doc_hash",)
    hashes = "".join(sample[key] for sample in found for key in keys)
    return Answers(
        figures=figures,
        right=[float(sample[task.metric]) for sample in found],
        questions_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def _results(
    runs: Runs, wanted: list[str], samples: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """lm-eval's tasks and groups by name, and what it finds; with `samples`, for every question
    too."""
    asked = load_tasks(wanted, runs.data, runs.shots)
    import lm_eval

    with failure_in_one_line(", ".join(wanted), runs.shots):
        found = lm_eval.simple_evaluate(
            model=_adapter(runs),
            tasks=list(asked.values()),
            num_fewshot=runs.shots,
            limit=runs.limit or None,
            bootstrap_iters=0,
            log_samples=samples,
            task_manager=task_manager(),
        )
    assert found is not None  # it is only in other processes than the first
    return asked, found


def _adapter(runs: Runs) -> Any:
    """The model as lm-eval asks it; likelihoods of answers are ours (`continuations.py`)."""
    from lm_eval.models.huggingface import HFLM

    class Adapter(HFLM):
        """lm-eval's own, but for the hook that models score tokens by."""

        def _loglikelihood_tokens(
            self,
            requests: list[tuple[Any, list[int], list[int]]],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            cut = sum(len(context) + len(answer) - 1 > self.max_length for context, answer in pairs)
            if cut:
                logger.warning(
                    "%d of %d answers stand behind more than the %d tokens that the model reads; "
                    "the first ones are left out", cut, len(pairs), self.max_length,
                )  # fmt: skip
            return log_likelihoods(runs.target, pairs, self.max_length, runs.on_request)

    return Adapter(
        pretrained=runs.target.model, tokenizer=runs.tokenizer, backend="causal", batch_size=BATCH
    )


def _figures(name: str, asked: Any, results: dict[str, Any], metric: str = "") -> dict[str, Any]:
    """What `run_tasks` says of a task or group; without a metric, by the one that counts.

    Raises:
        InputError: a task in Python has none of these metrics.
    """
    known = ACCURACIES if metric else METRICS
    found = _by_metric(results["results"][name])
    figures = {key: value for key, value in found.items() if _bare(key) in known}
    if not figures:
        what = f"{name} has no {' or '.join(known)}"
        raise InputError(what, field="tasks", hint="name another task")
    metric = metric or metric_of(name, figures)
    names = [part.task_name for part in parts_of(asked)]
    parts = [
        (results["n-samples"][part]["effective"], shares[metric])
        for part in names
        if metric in (shares := _by_metric(results["results"][part]))
    ]
    n, by_size = sum(size for size, _ in parts), weighs_by_size(name, _bare(metric))
    errors = [
        (size / n if by_size else 1 / len(parts)) * _error_of_share(share, size)
        for size, share in parts
    ]
    said = {"stderr": math.hypot(*errors), "n": n, "metric": metric}
    return figures | said | {"shots": results["n-shot"][names[0]]}


def _by_metric(found: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's figures by metric and, where it has a name, filter."""
    return {key.removesuffix(",none"): value for key, value in found.items()}


def _bare(metric: str) -> str:
    """Without the filter."""
    return metric.partition(",")[0]


def _error_of_share(share: float, n: int) -> float:
    """Of a mean of 0s and 1s."""
    return (share * (1 - share) / max(n - 1, 1)) ** 0.5


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """The mean over tasks of the metric of each, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)
