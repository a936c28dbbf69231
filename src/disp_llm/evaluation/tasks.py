"""Zero-shot tasks through lm-evaluation-harness (extra `eval`), with the metrics of the paper.

The paper reports acc for WinoGrande and acc_norm for the rest, and their average.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.suites import SuiteTask
from disp_llm.evaluation.continuations import log_likelihoods
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five of the paper's Table 3, in its order."""

BATCH = 8
"""Requests that run together where text is to be written."""


def metric_of(task: str, figures: dict[str, Any]) -> str:
    """The metric that counts: acc for WinoGrande and where there is no other, else acc_norm."""
    return "acc_norm" if "acc_norm" in figures and task != "winogrande" else "acc"


@dataclass(frozen=True)
class Runs:
    """A model, and what it is asked."""

    target: PrunableModel
    tokenizer: Any
    data: dict[str, Path]
    """Local files by task."""
    limit: int
    """Number of questions of each task; 0 = all."""
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
    """The hash of lm-eval's hashes of the questions, in the same order."""


def run_tasks(
    loaded: Loaded,
    names: Iterable[str],
    data: dict[str, Path],
    limit: int,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Accuracies by task: `{acc, acc_norm, stderr, n, metric}`; stderr is that of `metric`.

    Args:
        names: tasks, or lists of them with commas; `paper` is the paper's five.
        data: local JSON-lines files, in the task's own format, in place of its hub data set.
        limit: number of questions of each task; 0 = all.
        on_request: called with (done, total) as answers are scored.

    Raises:
        InputError: lm-eval is not installed, a task does not exist or has no accuracy, or its data
            cannot be had.
    """
    wanted = require_tasks(names, data)
    for name in wanted:
        _require_accuracy(name)
    runs = Runs(PrunableModel.of(loaded), loaded.tokenizer, data, limit, on_request)
    results = _results(runs, wanted)
    return {name: _figures(name, results) for name in wanted}


def answers(
    target: PrunableModel,
    tokenizer: Any,
    name: str,
    task: SuiteTask,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """What a model answers to every question of one task.

    Args:
        on_request: called with (done, total) as answers are scored.

    Raises:
        InputError: as `run_tasks`; or the task is a group of tasks, or has no answers that are
            right or wrong by the metric.
    """
    local = {} if task.data is None else {name: task.data}
    runs = Runs(target, tokenizer, local, task.limit, on_request)
    results = _results(runs, [name], samples=True)
    found = sorted(results["samples"].get(name, ()), key=lambda sample: sample["doc_id"])
    if not found:
        raise InputError(f"{name} is a group of tasks", field="tasks", hint="name those in it")
    if any(sample.get(task.metric) not in (0, 1) for sample in found):
        hint = "choose another metric, or another task"
        raise InputError(
            f"no question is right or wrong by {task.metric}", field="tasks", hint=hint
        )
    hashes = "".join(sample["doc_hash"] for sample in found)
    return Answers(
        figures=_figures(name, results, task.metric),
        right=[float(sample[task.metric]) for sample in found],
        questions_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def require_tasks(names: Iterable[str], data: Iterable[str] = ()) -> list[str]:
    """The tasks that are asked for, one by one.

    Args:
        names: as for `run_tasks`.
        data: names of tasks whose data is given.

    Raises:
        InputError: lm-eval is not installed, or has no such task; or data is given for one that is
            not asked for.
    """
    return _known_tasks(names, data, _task_manager(_lm_eval().TaskManager).all_tasks)


def _require_accuracy(name: str) -> None:
    """Refuses a group of tasks, and a task whose answers are not chosen among given ones."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = _task_manager(_lm_eval().TaskManager).task_index[name]
    if entry.kind.name in ("GROUP", "TAG"):
        raise InputError(f"{name} is a group of tasks", field="tasks", hint="name those in it")
    if entry.yaml_path is None:  # a task in Python, which says its metrics when it has run
        return
    stated = dict(load_yaml(entry.yaml_path, resolve_func=False)).get("metric_list") or ()
    metrics = [one["metric"] for one in stated]
    if metrics and not {"acc", "acc_norm"} & set(metrics):
        raise InputError(
            f"{name} has no accuracy, but {', '.join(map(str, metrics))}",
            field="tasks",
            hint="name a task of questions with given answers, or run lm-eval itself",
        )


def _lm_eval() -> Any:
    """The part of lm-eval that knows its tasks."""
    try:
        from lm_eval import tasks
    except ImportError as error:
        raise InputError(
            "lm-evaluation-harness is not installed",
            field="tasks",
            hint="run `pip install 'disp-llm[eval]'`",
        ) from error
    return tasks


def _results(runs: Runs, wanted: list[str], samples: bool = False) -> dict[str, Any]:
    """What lm-eval finds; with `samples`, for every question too."""
    manager = _task_manager(_lm_eval().TaskManager)
    import lm_eval

    specified = [
        _on_local_file(manager, name, runs.data[name]) if name in runs.data else name
        for name in wanted
    ]
    try:
        found = lm_eval.simple_evaluate(
            model=_adapter(runs),
            tasks=specified,
            task_manager=manager,
            limit=runs.limit or None,
            bootstrap_iters=0,
            log_samples=samples,
        )
    except Exception as error:  # of every kind, where the data is not what the task expects
        lines = str(error).splitlines()
        first = lines[0] if lines else type(error).__name__
        raise InputError(
            f"cannot run {', '.join(wanted)} ({first})",
            field="tasks",
            hint="check the network, or give local files as `task_data` NAME=FILE",
        ) from error
    assert found is not None  # it is only in other processes than the first
    return found


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
            return log_likelihoods(runs.target, pairs, self.max_length, runs.on_request)

    return Adapter(
        pretrained=runs.target.model, tokenizer=runs.tokenizer, backend="causal", batch_size=BATCH
    )


@cache
def _task_manager(kind: Callable[[], Any]) -> Any:
    """lm-eval's index of its tasks, which takes seconds to make."""
    return kind()


def _known_tasks(names: Iterable[str], data: Iterable[str], known: list[str]) -> list[str]:
    given = [name for part in names for name in part.split(",") if name]
    wanted = [task for name in given for task in (PAPER_TASKS if name == "paper" else (name,))]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            raise InputError(f"no task '{name}'{near}", field="tasks", hint="use lm-eval's names")
    for name in data:
        if name not in wanted:
            raise InputError(f"'{name}' is not among `tasks`", field="task_data", hint="name it")
    return wanted


def _on_local_file(manager: Any, name: str, path: Path) -> dict[str, Any]:
    """The task's own configuration, with one local file as its only split."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise InputError(f"there is no file {path}", field="task_data", hint="name a file")
    config = dict(load_yaml(manager.task_index[name].yaml_path, resolve_func=True))
    for key in ("training_split", "validation_split", "fewshot_split", "dataset_name"):
        config.pop(key, None)
    return config | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }


def _figures(name: str, results: dict[str, Any], metric: str = "") -> dict[str, Any]:
    """What `run_tasks` says of one task; without a metric, by the one that counts."""
    found = {key.removesuffix(",none"): value for key, value in results["results"][name].items()}
    metric = metric or metric_of(name, found)
    n = results["n-samples"][name]["effective"]
    figures = {key: found[key] for key in ("acc", "acc_norm") if key in found}
    spread = (found[metric] * (1 - found[metric]) / max(n - 1, 1)) ** 0.5  # of a mean of 0s and 1s
    return figures | {"stderr": spread, "n": n, "metric": metric}


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """The mean over tasks of the metric of each, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)
